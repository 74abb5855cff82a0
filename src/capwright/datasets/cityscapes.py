"""Cityscapes, fine annotations: the 19 classes that are scored.

Reads leftImg8bit/{val,train}/CITY/*_leftImg8bit.png and gtFine/{val,train}/CITY/. The raw
`*_gtFine_labelIds.png` (0 to 33) are turned into class numbers on the fly; `_labelTrainIds.png`
are read instead where the raw ones are not there. `capwright data convert cityscapes FOLDER`
writes those for other tools.
"""

from collections import Counter
from pathlib import Path

from capwright.core.errors import CapwrightError
from capwright.datasets.label_pictures import (
    Converted,
    Found,
    LabelPictures,
    Table,
    convert_labels,
    files_in,
    first_folder,
    table_of,
)
from capwright.datasets.sets import IGNORE, SegmentationSet

SPLITS = ("val", "train")
LABEL_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
CLASSES = tuple(LABEL_IDS)
RAW, TRAIN = "_gtFine_labelIds", "_gtFine_labelTrainIds"
_NUMBERS = {identity: number for number, identity in enumerate(LABEL_IDS.values())}
RAW_TABLE = table_of({identity: _NUMBERS.get(identity, IGNORE) for identity in range(34)})
_RAW_WRONG = (
    f"the files {RAW}.png hold the value {{value}}, but label ids are 0 to 33; with 255 in them "
    "they hold train ids under the wrong name: fetch gtFine_trainvaltest.zip again"
)


def find(folder: Path, split: str) -> Found:
    """Pictures and labels of a split: raw ids where they are there."""
    return _pictures(folder, split), _labels(folder, split, RAW) or _labels(folder, split, TRAIN)


def load(folder: Path, split: str) -> SegmentationSet:
    """The set, from raw ids or train ids."""
    return _set(folder, split).load(folder, split)


def check(folder: Path, split: str | None = None) -> list[str]:
    """Problems of one split, or of `val`."""
    split = split or SPLITS[0]
    return _set(folder, split).check(folder, split)


def convert(folder: Path) -> Converted:
    """Write train ids beside the raw ids of every split that is there."""
    targets: dict[Path, Path] = {}
    for split in SPLITS:
        if (folder / "gtFine" / split).is_dir():
            raw = _labels(folder, split, RAW).values()
            targets |= {p: p.with_name(p.name.replace("labelIds", "labelTrainIds")) for p in raw}
    if not targets:
        raise CapwrightError(f"{folder} has no gtFine/SPLIT/CITY/*{RAW}.png: unpack gtFine there")
    return convert_labels("cityscapes", targets, RAW_TABLE, _RAW_WRONG)


def _pictures(folder: Path, split: str) -> dict[str, Path]:
    images = first_folder(folder, f"leftImg8bit/{split}")
    return files_in(images, (".png",), "_leftImg8bit")


def _labels(folder: Path, split: str, ending: str) -> dict[str, Path]:
    return files_in(first_folder(folder, f"gtFine/{split}"), (".png",), ending)


def _set(folder: Path, split: str) -> LabelPictures:
    raw = (folder / "gtFine" / split).is_dir() and bool(_labels(folder, split, RAW))
    table: Table = RAW_TABLE
    if not raw:
        table = table_of({**{number: number for number in range(19)}, IGNORE: IGNORE})
    return LabelPictures(
        name="cityscapes",
        classes=CLASSES,
        has_background=False,
        table=table,
        wrong=_RAW_WRONG
        if raw
        else f"the files {TRAIN}.png hold label ids (e.g. {{value}}; train ids are 0 to 18 and "
        f"255): put the {RAW}.png beside them, which are read first",
        find=find,
        splits=SPLITS,
        suspect=lambda counts: _suspect(counts) if raw else None,
    )


def _suspect(counts: Counter[int]) -> str | None:
    """Train ids under the raw name never reach 19."""
    if max(counts) > 18:
        return None
    return (
        f"the files {RAW}.png hold no value above 18, so they seem to hold train ids: name them "
        f"*{TRAIN}.png, or fetch gtFine_trainvaltest.zip again"
    )
