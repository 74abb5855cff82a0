"""AP and AR equal pycocotools run by hand, on random boxes and masks."""

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from capwright.core.errors import CapwrightError
from capwright.evaluate.detection_metrics import (
    NAMES,
    Detections,
    average_precision,
    coco_rows,
)
from toy_detections import CATEGORIES, SIDE, ellipse, random_boxes


@pytest.fixture(scope="module")
def toys() -> tuple[dict[str, Any], list[Detections]]:
    """Annotations with a crowd and a picture without objects; detections near some of them."""
    rng = np.random.default_rng(0)
    rows, detections = [], []
    for image_id in range(10, 20):
        count = 0 if image_id == 12 else int(rng.integers(2, 7))
        boxes, labels = random_boxes(rng, count), rng.integers(0, 2, count)
        if image_id == 10:
            boxes[0] = (5, 5, 155, 150)  # surely a large one
        for box, label in zip(boxes, labels, strict=True):
            mask = run_lengths.encode(np.asfortranarray(ellipse(box).astype(np.uint8)))
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES[label],
                    "bbox": [*box[:2], *(box[2:] - box[:2])],
                    "area": float(run_lengths.area(mask)),
                    "iscrowd": int(len(rows) == 4),
                    "segmentation": mask,
                }
            )
        near = boxes + rng.normal(0, 3, boxes.shape) * (rng.random((count, 1)) < 0.8)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
        found = np.concatenate([near, random_boxes(rng, 3)])
        detections.append(
            Detections(
                image_id=image_id,
                boxes_N4=found,
                scores_N=rng.random(len(found)),
                labels_N=np.concatenate([labels, rng.integers(0, 3, 3)]),
                masks_NHW=np.stack([ellipse(box) for box in found]),
            )
        )
    annotations = {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in range(10, 20)],
        "categories": [{"id": i, "name": f"thing {i}"} for i in CATEGORIES],
        "annotations": rows,
    }
    return annotations, detections


def by_hand(annotations: dict[str, Any], rows: list[dict[str, Any]], kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        if kind == "segm":  # or loadRes takes the boxes' areas
            rows = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(rows)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


def test_box_and_mask_ap_equal_pycocotools(toys) -> None:
    annotations, detections = toys
    rows = [row for found in detections for row in coco_rows(found, CATEGORIES)]
    before = copy.deepcopy(annotations)
    metrics = average_precision(annotations, rows, ("box", "mask"))
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        expected = by_hand(annotations, rows, theirs)
        assert [metrics[f"{kind}_{name}"] for name in NAMES] == pytest.approx(expected)
        assert min(expected) >= 0
    assert 0.05 < metrics["mask_ap"] < metrics["mask_ap50"] < 1
    assert metrics["box_ap"] != pytest.approx(metrics["mask_ap"], abs=1e-4)
    assert annotations == before


def test_an_object_numbered_0_is_found_too(toys) -> None:
    annotations, _ = toys
    rows = [dict(row, score=0.5) for row in annotations["annotations"] if not row["iscrowd"]]
    from_0 = [{**row, "id": row["id"] - 1} for row in annotations["annotations"]]
    metrics = average_precision({**annotations, "annotations": from_0}, rows, ("box",))
    assert metrics["box_ap"] == pytest.approx(1)


def test_perfect_detections_have_an_ap_of_1(toys) -> None:
    annotations, _ = toys
    rows = [dict(row, score=0.5) for row in annotations["annotations"] if not row["iscrowd"]]
    metrics = average_precision(annotations, rows, ("box", "mask"))
    assert metrics["box_ap"] == metrics["mask_ap"] == metrics["box_ar100"] == pytest.approx(1)


def test_without_predictions_every_measured_metric_is_0(toys) -> None:
    metrics = average_precision(toys[0], [], ("box", "mask"))
    assert set(metrics.values()) == {0.0}
    assert len(metrics) == 24


def test_without_annotated_objects_there_is_nothing_to_measure(toys) -> None:
    annotations, detections = toys
    empty = {**annotations, "annotations": []}
    rows = coco_rows(detections[0], CATEGORIES)
    assert set(average_precision(empty, rows).values()) == {None}


def test_predictions_of_another_set_and_without_masks_are_refused(toys) -> None:
    annotations, _ = toys
    row = {"image_id": 99, "category_id": 7, "bbox": [0, 0, 9, 9], "score": 1.0}
    with pytest.raises(CapwrightError, match="of the picture 99, which is not among the 10"):
        average_precision(annotations, [row])
    with pytest.raises(CapwrightError, match="no 'segmentation': mask AP needs a mask for each"):
        average_precision(annotations, [{**row, "image_id": 10}], ("mask",))
