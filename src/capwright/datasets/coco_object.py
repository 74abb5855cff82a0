"""COCO-Object: the 80 things of COCO and a background of all stuff, 81 classes.

Reads the pictures and label pictures of COCO-Stuff (see coco_stuff): *_instanceTrainIds.png with 0
for the background, 1 to 80 for the things and 255 = ignored. `capwright data convert coco-object
FOLDER` writes them beside the raw labels: stuff becomes background, unlabelled pixels stay ignored.
"""

from pathlib import Path

from capwright.datasets import coco_stuff
from capwright.datasets.coco_names import STUFF_IDS, THING_IDS, THINGS
from capwright.datasets.label_pictures import Converted, Found, LabelPictures, table_of
from capwright.datasets.sets import IGNORE

SPLITS = coco_stuff.SPLITS
CLASSES = ("background", *THINGS)
SUFFIX = "_instanceTrainIds"
_THING = {identity - 1: number for number, identity in enumerate(THING_IDS, 1)}
_RAW_TABLE = table_of({**_THING, **{i - 1: 0 for i in STUFF_IDS}, IGNORE: IGNORE})


def find(folder: Path, split: str) -> Found:
    """Pictures and labels of a split."""
    labels = coco_stuff.converted_labels(folder, split, SUFFIX, "coco-object")
    return coco_stuff.pictures_of(folder, split), labels


def convert(folder: Path) -> Converted:
    """Write class numbers beside the raw labels of every split that is there."""
    return coco_stuff.convert_splits(folder, SUFFIX, "coco-object", _RAW_TABLE)


_SET = LabelPictures(
    name="coco-object",
    classes=CLASSES,
    has_background=True,
    table=table_of({**{number: number for number in range(81)}, IGNORE: IGNORE}),
    wrong=f"the files {SUFFIX}.png hold raw ids (e.g. {{value}}; classes are 0 to 80): delete "
    "them and run `capwright data convert coco-object FOLDER`",
    find=find,
    splits=SPLITS,
)
load, check = _SET.load, _SET.check
