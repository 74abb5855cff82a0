"""COCO-Stuff 164k: 80 things and 91 kinds of stuff, 171 classes.

Reads images/val2017/*.jpg (or val2017/) and annotations/val2017/*_labelTrainIds.png (or
stuffthingmaps_trainval2017/val2017/, stuffthingmaps/val2017/), with 0 to 170 and 255 = ignored.
What the archive holds are raw ids (0 to 181); `capwright data convert coco-stuff FOLDER` writes the
`_labelTrainIds.png` beside them and leaves them as they are.
"""

from pathlib import Path

from capwright.core.errors import CapwrightError
from capwright.datasets.coco_names import STUFF, STUFF_IDS, THING_IDS, THINGS
from capwright.datasets.label_pictures import (
    PICTURES,
    Converted,
    Found,
    LabelPictures,
    convert_labels,
    files_in,
    first_folder,
    table_of,
)
from capwright.datasets.sets import IGNORE

SPLITS = ("val2017", "train2017")
CLASSES = (*THINGS, *STUFF)
SUFFIX = "_labelTrainIds"
RAW_WRONG = (
    "the labels hold the value {value}, but COCO-Stuff's raw ids are 0 to 181 without those of "
    "unused classes, and 255: fetch stuffthingmaps_trainval2017.zip again"
)
_RAW = {identity - 1: number for number, identity in enumerate((*THING_IDS, *STUFF_IDS))}
RAW_TABLE = table_of({**_RAW, IGNORE: IGNORE})


def pictures_of(folder: Path, split: str) -> dict[str, Path]:
    """Pictures of a split by key."""
    return files_in(first_folder(folder, f"images/{split}", split), PICTURES)


def labels_folder(folder: Path, split: str) -> Path:
    """Where the label pictures of a split are."""
    places = ("annotations", "stuffthingmaps_trainval2017", "stuffthingmaps")
    return first_folder(folder, *(f"{place}/{split}" for place in places))


def raw_labels(folder: Path, split: str) -> dict[str, Path]:
    """Label pictures with raw ids by key: those whose name has no suffix."""
    return {
        key: path
        for key, path in files_in(labels_folder(folder, split), (".png",)).items()
        if not key.endswith("TrainIds")
    }


def converted_labels(folder: Path, split: str, suffix: str, name: str) -> dict[str, Path]:
    """Label pictures with class numbers; raw ones alone are a CapwrightError."""
    found = files_in(labels_folder(folder, split), (".png",), suffix)
    raw = raw_labels(folder, split)
    if raw and len(found) < len(raw):
        raise CapwrightError(
            f"the labels hold raw ids (0 to 181; {len(raw) - len(found)} of {len(raw)} have no "
            f"{suffix}.png): run `capwright data convert {name} {folder}`"
        )
    return found


def find(folder: Path, split: str) -> Found:
    """Pictures and labels of a split."""
    labels = converted_labels(folder, split, SUFFIX, "coco-stuff")
    return pictures_of(folder, split), labels


def convert(folder: Path) -> Converted:
    """Write class numbers beside the raw labels of every split that is there."""
    return convert_splits(folder, SUFFIX, "coco-stuff", RAW_TABLE)


def convert_splits(folder: Path, suffix: str, name: str, table: tuple[int, ...]) -> Converted:
    """Write NAME + `suffix` beside the raw labels, as `table` says."""
    targets: dict[Path, Path] = {}
    for split in SPLITS:
        try:
            raw = raw_labels(folder, split)
        except CapwrightError:
            continue  # people fetch one split alone
        targets |= {path: path.with_name(f"{path.stem}{suffix}.png") for path in raw.values()}
    if not targets:
        raise CapwrightError(
            f"{folder} has no raw labels: unpack stuffthingmaps_trainval2017.zip into "
            f"{folder}/stuffthingmaps_trainval2017"
        )
    return convert_labels(name, targets, table, RAW_WRONG)


_SET = LabelPictures(
    name="coco-stuff",
    classes=CLASSES,
    has_background=False,
    table=table_of({**{number: number for number in range(171)}, IGNORE: IGNORE}),
    wrong=f"the files {SUFFIX}.png hold raw ids (e.g. {{value}}; classes are 0 to 170): delete "
    "them and run `capwright data convert coco-stuff FOLDER`",
    find=find,
    splits=SPLITS,
)
load, check = _SET.load, _SET.check
