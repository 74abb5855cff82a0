"""ADE20K, the scene parsing benchmark: 150 classes, everything labelled that they cover.

Reads ADEChallengeData2016/images/{validation,training}/*.jpg and annotations/…/*.png. Stored 0 is
"other objects" and ignored; stored 1 to 150 are classes 0 to 149.
"""

from pathlib import Path

from capwright.datasets.label_pictures import (
    PICTURES,
    Found,
    LabelPictures,
    files_in,
    first_folder,
    table_of,
)
from capwright.datasets.sets import IGNORE

SPLITS = ("validation", "training")
CLASSES = tuple(
    """
    wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk;
    person; earth; door; table; mountain; plant; curtain; chair; car; water; painting; sofa; shelf;
    house; sea; mirror; rug; field; armchair; seat; fence; desk; rock; wardrobe; lamp; bathtub;
    railing; cushion; base; box; column; signboard; chest of drawers; counter; sand; sink;
    skyscraper; fireplace; refrigerator; grandstand; path; stairs; runway; case; pool table; pillow;
    screen door; stairway; river; bridge; bookcase; blind; coffee table; toilet; flower; book; hill;
    bench; countertop; stove; palm; kitchen island; computer; swivel chair; boat; bar;
    arcade machine; hovel; bus; towel; light; truck; tower; chandelier; awning; streetlight; booth;
    television receiver; airplane; dirt track; apparel; pole; land; bannister; escalator; ottoman;
    bottle; buffet; poster; stage; van; ship; fountain; conveyer belt; canopy; washer; plaything;
    swimming pool; stool; barrel; basket; waterfall; tent; bag; minibike; cradle; oven; ball; food;
    step; tank; trade name; microwave; pot; animal; bicycle; lake; dishwasher; screen; blanket;
    sculpture; hood; sconce; vase; traffic light; tray; ashcan; fan; pier; crt screen; plate;
    monitor; bulletin board; shower; radiator; glass; clock; flag
    """.replace("\n", " ")
    .replace("    ", "")
    .strip()
    .split("; ")
)


def find(folder: Path, split: str) -> Found:
    """Pictures and labels of a split."""
    root = first_folder(folder, "ADEChallengeData2016", ".")
    images = first_folder(root, f"images/{split}")
    labels = first_folder(root, f"annotations/{split}")
    return files_in(images, PICTURES), files_in(labels, (".png",))


_SET = LabelPictures(
    name="ade20k",
    classes=CLASSES,
    has_background=False,
    table=table_of({0: IGNORE, **{stored: stored - 1 for stored in range(1, 151)}}),
    wrong="the labels hold the value {value}, but ADE20K stores 0 (ignored) to 150; with 255 in "
    "them they are already shifted by one: use the annotations as they come in the archive",
    find=find,
    splits=SPLITS,
)
load, check = _SET.load, _SET.check
