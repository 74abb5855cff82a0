"""COCO annotations and detections drawn at random: crowds, an absent class, empty pictures."""

from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

SIDE, CATEGORIES = 160, (7, 3, 11)  # COCO's ids have gaps and no order; the last one is absent


def ellipse(box: np.ndarray) -> np.ndarray:
    """A mask that fills a box."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    across, down = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
    return across**2 + down**2 <= 1


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """x0, y0, x1, y1 within the picture, of all sizes."""
    size = np.exp(rng.uniform(np.log(8), np.log(150), (count, 2)))
    corner = rng.random((count, 2)) * (SIDE - size)
    return np.concatenate([corner, corner + size], axis=1)


def random_set(seed: int, pictures: int = 8) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(annotations, predictions as COCO has them): near truths and not, with equal scores."""
    rng = np.random.default_rng(seed)
    truths: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image_id in range(10, 10 + pictures):
        boxes = random_boxes(rng, int(rng.integers(0, 6)))
        labels = rng.integers(0, 2, len(boxes))
        for box, label in zip(boxes, labels, strict=True):
            truth = _row(image_id, box, CATEGORIES[label])
            truth["area"] = float(run_lengths.area(truth["segmentation"]))
            truths.append({**truth, "id": len(truths), "iscrowd": int(rng.random() < 0.2)})
        if rng.random() < 0.2:
            continue  # nothing is found here
        near = boxes + rng.normal(0, 3, boxes.shape) * (rng.random((len(boxes), 1)) < 0.8)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
        found = np.concatenate([near, random_boxes(rng, 3)])
        kinds = np.concatenate([labels, rng.integers(0, 3, 3)])
        for box, label in zip(found, kinds, strict=True):
            score = float(rng.integers(0, 10) / 10)
            rows.append({**_row(image_id, box, CATEGORIES[label]), "score": score})
    annotations = {
        "images": [{"id": 10 + i, "height": SIDE, "width": SIDE} for i in range(pictures)],
        "categories": [{"id": i, "name": f"thing {i}"} for i in CATEGORIES],
        "annotations": truths,
    }
    return annotations, rows


def drawn(
    annotations: dict[str, Any], rows: list[dict[str, Any]], weights: np.ndarray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same where picture n is there `weights[n]` times, under ids of its own."""
    copies = [
        (image["id"], 1000 * image["id"] + copy)
        for image, weight in zip(annotations["images"], weights, strict=True)
        for copy in range(weight)
    ]
    images = [{"id": new, "height": SIDE, "width": SIDE} for _, new in copies]

    def of(old_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**row, "image_id": new}
            for old, new in copies
            for row in old_rows
            if row["image_id"] == old
        ]

    truths = [{**row, "id": number} for number, row in enumerate(of(annotations["annotations"]), 1)]
    return {**annotations, "images": images, "annotations": truths}, of(rows)


def _row(image_id: int, box: np.ndarray, category: int) -> dict[str, Any]:
    mask = run_lengths.encode(np.asfortranarray(ellipse(box).astype(np.uint8)))
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": [float(value) for value in (*box[:2], *(box[2:] - box[:2]))],
        "segmentation": mask,
    }
