"""COCO 2017 instances: 80 classes with boxes and masks.

Reads annotations/instances_{val2017,train2017}.json and {val2017,train2017}/*.jpg (or images/…).
Any set in COCO's form with the same file names is read too: classes are the json's categories in
the order of their ids.
"""

from collections import Counter, defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.datasets.coco_masks import decode_mask
from capwright.datasets.label_pictures import first_folder, open_rgb
from capwright.datasets.sets import DetectionItem, DetectionSet

SPLITS = ("val2017", "train2017")


@dataclass(frozen=True, kw_only=True)
class _Reader:
    images: tuple[Mapping[str, Any], ...]
    regions: Mapping[int, tuple[Mapping[str, Any], ...]] = field(repr=False)  # by image id
    labels: Mapping[int, int]  # class by category id
    folder: Path

    def __call__(self, index: int) -> DetectionItem:
        entry = self.images[index]
        picture = open_rgb(self.folder / entry["file_name"])
        height, width = picture.height, picture.width
        if (entry["height"], entry["width"]) != (height, width):
            raise CapwrightError(
                f"{entry['file_name']} is {width} × {height}, but the annotations say "
                f"{entry['width']} × {entry['height']}: they belong to the original pictures"
            )
        regions = self.regions.get(entry["id"], ())
        problem = next(filter(None, (_problem(region, self.labels) for region in regions)), None)
        if problem:
            raise CapwrightError(f"an annotation of {entry['file_name']} has {problem}")
        boxes_N4 = np.array([region["bbox"] for region in regions], np.float32).reshape(-1, 4)
        boxes_N4[:, 2:] += boxes_N4[:, :2]
        masks = [decode_mask(region["segmentation"], height, width) for region in regions]
        return DetectionItem(
            key=Path(entry["file_name"]).stem,
            image=picture,
            image_id=entry["id"],
            boxes_N4=boxes_N4,
            labels_N=np.array([self.labels[r["category_id"]] for r in regions], np.int64),
            masks_NHW=np.array(masks, np.bool_).reshape(-1, height, width),
            crowd_N=np.array([bool(r.get("iscrowd", 0)) for r in regions], np.bool_),
        )


def load(folder: Path, split: str) -> DetectionSet:
    """The set; pictures without objects are kept, since false positives there count."""
    annotations = _annotations(folder, split)
    categories = sorted(annotations["categories"], key=lambda category: category["id"])
    ids = tuple(category["id"] for category in categories)
    regions: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for region in annotations["annotations"]:
        regions[region["image_id"]].append(region)
    images = tuple(annotations["images"])
    return DetectionSet(
        name="coco-instances",
        keys=tuple(Path(entry["file_name"]).stem for entry in images),
        read=_Reader(
            images=images,
            regions={key: tuple(found) for key, found in regions.items()},
            labels={identity: label for label, identity in enumerate(ids)},
            folder=_pictures(folder, split),
        ),
        classes=tuple(category["name"] for category in categories),
        category_ids=ids,
        annotations=annotations,
    )


def check(folder: Path, split: str | None = None) -> list[str]:
    """Problems: missing and unreadable pictures, sizes, ids that lead nowhere, annotations without
    box or mask, boxes out of their picture.
    """
    split = split or SPLITS[0]
    try:
        annotations = _annotations(folder, split)
        pictures = _pictures(folder, split)
    except CapwrightError as error:
        return [str(error)]
    entries = {entry["id"]: entry for entry in annotations["images"]}
    problems = _picture_problems(list(entries.values()), pictures)
    categories = {category["id"] for category in annotations["categories"]}
    wrong: Counter[str] = Counter()
    for region in annotations["annotations"]:
        if problem := _problem(region, categories):
            wrong[problem] += 1
        elif region["image_id"] not in entries:
            wrong["a picture that the json does not list"] += 1
        elif not _inside(region["bbox"], entries[region["image_id"]]):
            wrong["a box out of its picture (boxes are x, y, width, height in pixels)"] += 1
    problems += [f"{count} annotations have {what}" for what, count in wrong.items()]
    return problems


def _problem(region: Mapping[str, Any], categories: Container[Any]) -> str | None:
    """What is wrong with an annotation by itself."""
    if region.get("category_id") not in categories:
        return "a category that the json does not list: add it to `categories`"
    for name in ("bbox", "segmentation"):
        if not region.get(name):
            return f"no {name}: each needs a box and a mask (polygons or run lengths)"
    return None


def _picture_problems(entries: list[Mapping[str, Any]], folder: Path) -> list[str]:
    lost = [e for e in entries if not (folder / e["file_name"]).is_file()]
    if lost:
        first = folder / lost[0]["file_name"]
        return [f"{len(lost)} of {len(entries)} pictures are missing, first {first}"]
    for entry in entries:
        path, said = folder / entry["file_name"], (entry["width"], entry["height"])
        try:
            with Image.open(path) as picture:
                size = picture.size
        except OSError as error:
            return [f"{path} is not a readable picture ({error}): fetch it again"]
        if size != said:
            return [
                f"{path} is {size[0]} × {size[1]}, but the annotations say {said[0]} × {said[1]}: "
                "take the originals"
            ]
    return []


def _inside(box: list[float], entry: Mapping[str, Any]) -> bool:
    x, y, width, height = box
    slack = 1.0  # COCO itself rounds
    return (
        min(x, y, width, height) >= -slack
        and x + width <= entry["width"] + slack
        and y + height <= entry["height"] + slack
    )


def _annotations(folder: Path, split: str) -> Mapping[str, Any]:
    path = folder / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        raise CapwrightError(f"{path} is missing: it comes in annotations_trainval2017.zip")
    content: Mapping[str, Any] = read_json(path)
    lacking = [name for name in ("images", "annotations", "categories") if name not in content]
    if lacking:
        raise CapwrightError(
            f"{path} has no {lacking[0]!r}: COCO's json has images, annotations and categories"
        )
    return content


def _pictures(folder: Path, split: str) -> Path:
    return first_folder(folder, split, f"images/{split}")
