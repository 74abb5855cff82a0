"""Pascal Context: where its files lie, its names, the conversion; see pascal_context59 and …60.

Reads VOCdevkit/VOC2010/JPEGImages/*.jpg, SegmentationClassContext/*.png (0 = background, 1 to 59)
and ImageSets/SegmentationContext/{val,train}.txt. `capwright data convert pascal-context60 FOLDER`
writes the label pictures and the lists from VOC2010/trainval_merged.json. There and here the 59
classes stand in the alphabet's order. The older 59_context_labels.tar.gz has the 20 classes of VOC
first; `check` tells the two apart by which numbers are common.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json
from capwright.core.progress import Progress
from capwright.datasets.coco_masks import decode_mask
from capwright.datasets.label_pictures import (
    Converted,
    Found,
    first_folder,
    read_list,
    write_label,
)

SPLITS = ("val", "train")
CATEGORY_IDS = {  # of the 459 categories in trainval_merged.json
    "aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23, "bird": 25,
    "boat": 31, "book": 33, "bottle": 34, "building": 44, "bus": 45, "cabinet": 46, "car": 59,
    "cat": 65, "ceiling": 68, "chair": 72, "cloth": 80, "computer": 85, "cow": 98, "cup": 104,
    "curtain": 105, "dog": 113, "door": 115, "fence": 144, "floor": 158, "flower": 159, "food": 162,
    "grass": 187, "ground": 189, "horse": 207, "keyboard": 220, "light": 232, "motorbike": 258,
    "mountain": 259, "mouse": 260, "person": 284, "plate": 295, "platform": 296,
    "pottedplant": 308, "road": 324, "rock": 326, "sheep": 347, "shelves": 349, "sidewalk": 354,
    "sign": 355, "sky": 360, "snow": 366, "sofa": 368, "table": 397, "track": 415, "train": 416,
    "tree": 420, "truck": 424, "tvmonitor": 427, "wall": 440, "water": 445, "window": 454,
    "wood": 458,
}  # fmt: skip
CLASSES = tuple(CATEGORY_IDS)
WRONG_VALUE = (
    "the labels hold the value {value}, but Pascal Context of 59 classes stores 0 to 59: with the "
    "459 categories of the original, delete them and run "
    "`capwright data convert pascal-context60 FOLDER`"
)
JSON = "trainval_merged.json"
_LABELS = "SegmentationClassContext"
_ENOUGH = 50  # pictures from which the commonness of classes tells the order
_VOC_FIRST = {"grass": 36, "sky": 50, "tree": 54}  # numbers in 59_context_labels


def root_of(folder: Path) -> Path:
    """The folder VOC2010 itself."""
    return first_folder(folder, "VOCdevkit/VOC2010", "VOC2010", ".")


def find(folder: Path, split: str) -> Found:
    """Pictures and labels of a split's list."""
    root = root_of(folder)
    if not (root / _LABELS).is_dir() and (root / JSON).is_file():
        raise CapwrightError(
            f"{root} has {JSON} but no {_LABELS}/: run "
            f"`capwright data convert pascal-context60 {folder}`"
        )
    labels, images = first_folder(root, _LABELS), first_folder(root, "JPEGImages")
    keys = read_list(root / "ImageSets" / "SegmentationContext" / f"{split}.txt")
    return (
        {key: images / f"{key}.jpg" for key in keys},
        {key: labels / f"{key}.png" for key in keys if (labels / f"{key}.png").is_file()},
    )


def suspect(counts: Counter[int]) -> str | None:
    """Whether grass, sky and tree are common where the other order has them."""
    names = tuple(_VOC_FIRST)
    ours = sum(counts[CLASSES.index(name) + 1] for name in names)
    theirs = sum(counts[number] for number in _VOC_FIRST.values())
    if max(counts.values()) < _ENOUGH or theirs <= ours:
        return None
    return (
        "the labels look as if the 20 classes of VOC came first (as in 59_context_labels), but "
        "classes are in the alphabet's order here: run `capwright data convert pascal-context60 "
        f"FOLDER` with {JSON} there and the old {_LABELS}/ deleted"
    )


def convert(folder: Path) -> Converted:
    """Write the label pictures and the lists of both splits from trainval_merged.json."""
    root = root_of(folder)
    if not (root / JSON).is_file():
        raise CapwrightError(f"{root} has no {JSON}, from which the labels are made: put it there")
    content = read_json(root / JSON)
    regions: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for region in content["annos_segmentation"]:
        regions[region["image_id"]].append(region)
    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    written = 0
    with Progress("convert pascal-context", len(content["images"]), "labels") as progress:
        for image in content["images"]:
            if image["phase"] in lists:
                key = Path(image["file_name"]).stem
                lists[image["phase"]].append(key)
                target = root / _LABELS / f"{key}.png"
                if not target.exists():
                    write_label(target, seg_of(image, regions[image["image_id"]]))
                    written += 1
            progress.advance()
    for split, keys in lists.items():
        with atomic_path(root / "ImageSets" / "SegmentationContext" / f"{split}.txt") as path:
            path.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    return Converted(written=written, already_there=sum(map(len, lists.values())) - written)


def seg_of(image: Mapping[str, Any], regions: list[Mapping[str, Any]]) -> NDArray[np.uint8]:
    """Class numbers [H, W]; where regions overlap, the later one counts. Others are background."""
    numbers = {identity: number for number, identity in enumerate(CATEGORY_IDS.values(), 1)}
    seg_HW = np.zeros((image["height"], image["width"]), np.uint8)
    for region in regions:
        mask_HW = decode_mask(region["segmentation"], *seg_HW.shape)
        seg_HW[mask_HW] = numbers.get(region["category_id"], 0)
    return seg_HW
