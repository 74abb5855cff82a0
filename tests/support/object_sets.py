"""A set of pictures with rectangles on grey: red ones and blue ones, made when they are read."""

from typing import Any

import numpy as np
from PIL import Image

from capwright.datasets.scenes_sets import run_lengths
from capwright.datasets.sets import DetectionItem, DetectionSet

CLASSES, IDS = ("red", "blue"), (5, 2)
COLOURS = np.array([(220, 30, 30), (30, 30, 220)], np.uint8)


def rectangles(number: int, height: int, width: int) -> DetectionItem:
    """One or two rectangles that do not meet; every fifth picture has none, every fourth a crowd
    besides.
    """
    rng = np.random.default_rng(number)
    pixels = np.full((height, width, 3), 128, np.uint8)
    masks, boxes, labels, crowds = [], [], [], []
    count = 0 if number % 5 == 4 else 1 + number % 2
    for place in range(count):
        tall, wide = rng.integers(height // 3, height // 2), rng.integers(width // 4, width // 2)
        left = place * (width // 2) + rng.integers(0, width // 2 - wide + 1)
        top = rng.integers(0, height - tall + 1)
        label = int(rng.integers(2))
        mask_HW = np.zeros((height, width), bool)
        mask_HW[top : top + tall, left : left + wide] = True
        pixels[mask_HW] = COLOURS[label]
        masks.append(mask_HW)
        boxes.append((left, top, left + wide, top + tall))
        labels.append(label)
        crowds.append(False)
    if number % 4 == 3:
        masks.append(np.ones((height, width), bool))
        boxes.append((0, 0, width, height))
        labels.append(0)
        crowds.append(True)
    return DetectionItem(
        key=f"{number:03d}",
        image=Image.fromarray(pixels),
        image_id=number + 100,
        boxes_N4=np.array(boxes, np.float32).reshape(-1, 4),
        labels_N=np.array(labels, np.int64),
        masks_NHW=np.array(masks, bool).reshape(-1, height, width),
        crowd_N=np.array(crowds, bool),
    )


class Rectangles:
    """Reads item `number`; it pickles."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width

    def __call__(self, number: int) -> DetectionItem:
        return rectangles(number, self.height, self.width)


def object_set(count: int, height: int = 48, width: int = 64) -> DetectionSet:
    """The set, with COCO's annotations."""
    read = Rectangles(height, width)
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number in range(count):
        item = read(number)
        images.append(
            {"id": item.image_id, "file_name": item.key, "height": height, "width": width}
        )
        for box, label, mask_HW, crowd in zip(
            item.boxes_N4.tolist(), item.labels_N, item.masks_NHW, item.crowd_N, strict=True
        ):
            x0, y0, x1, y1 = box
            row = {"id": len(rows) + 1, "image_id": item.image_id, "category_id": IDS[label]}
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask_HW.sum())}
            rows.append({**row, "iscrowd": int(crowd), "segmentation": run_lengths(mask_HW)})
    categories = [{"id": i, "name": name} for i, name in zip(IDS, CLASSES, strict=True)]
    return DetectionSet(
        name="rectangles",
        keys=tuple(image["file_name"] for image in images),
        read=read,
        classes=CLASSES,
        category_ids=IDS,
        annotations={"images": images, "annotations": rows, "categories": categories},
    )
