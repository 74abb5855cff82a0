"""Box and mask AP as COCO defines them, by pycocotools.

AP is the mean over classes and over the IoU thresholds 0.50, 0.55, ..., 0.95 of the precision at
101 recalls; AP50 and AP75 are those at one threshold; small, medium and large objects have below
32^2, below 96^2 and more pixels; AR is the mean recall with at most 1, 10 and 100 boxes a picture
(Lin et al., arXiv 1405.0312). All are shares of 1. Reads and writes nothing.
`measured` also gives what AP needs of every picture (matches.py), to compare models.

Shapes: N detections of a picture, H and W of the picture; of all: P pictures, C classes, D
detections, T thresholds.
"""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from capwright.core.errors import CapwrightError
from capwright.evaluate.matches import HIT, IGNORED, MISS, Matches
from capwright.evaluate.outcomes import Outcomes

Kind = Literal["box", "mask"]
IOU_TYPES: Mapping[Kind, str] = {"box": "bbox", "mask": "segm"}
# in the order of COCOeval.stats
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
         "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip
RANGES = ("ap", "ap_small", "ap_medium", "ap_large")  # in the order of COCOeval's ranges of areas
AT_50, AT_75 = 0, 5  # numbers of thresholds


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a detector finds in one picture, in pixels of the picture as annotated."""

    image_id: int
    boxes_N4: NDArray[np.floating]  # x0, y0, x1, y1
    scores_N: NDArray[np.floating]
    labels_N: NDArray[np.integer]  # contiguous classes from 0
    masks_NHW: NDArray[np.bool_] | None = None


def coco_rows(found: Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections in COCO's result form; `category_ids[c]` is COCO's id of class c."""
    rows: list[dict[str, Any]] = []
    for i, (x0, y0, x1, y1) in enumerate(found.boxes_N4.astype(np.float64).tolist()):
        row: dict[str, Any] = {
            "image_id": found.image_id,
            "category_id": category_ids[int(found.labels_N[i])],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(found.scores_N[i]),
        }
        if found.masks_NHW is not None:
            row["segmentation"] = run_lengths.encode(
                np.asfortranarray(found.masks_NHW[i].astype(np.uint8))
            )
        rows.append(row)
    return rows


def average_precision(
    annotations: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    kinds: Sequence[Kind] = ("box",),
) -> dict[str, float | None]:
    """`box_ap`, `box_ap50`, ..., `mask_ap`, ... of predictions in COCO's result form.

    `annotations` is the content of a COCO annotation file. A metric is None where nothing could be
    measured, such as `box_ap_small` without small objects; without predictions it is 0. Raises
    CapwrightError for a prediction of a picture that is not annotated or, for masks, without one.
    """
    return measured(annotations, predictions, kinds)[0]


def measured(
    annotations: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    kinds: Sequence[Kind] = ("box",),
) -> tuple[dict[str, float | None], Outcomes]:
    """`average_precision`, and each picture's matches for the APs; its key is the picture's id."""
    _check(annotations, predictions, kinds)
    metrics: dict[str, float | None] = {}
    matches: dict[str, Matches] = {}
    keys: tuple[str, ...] = ()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
        for kind in kinds:
            evaluation = _evaluated(annotations, predictions, kind)
            values = [float(value) for value in evaluation.stats]
            for name, value in zip(NAMES, values, strict=True):
                metrics[f"{kind}_{name}"] = value if value >= 0 else None  # -1: nothing to measure
            keys = tuple(str(identity) for identity in evaluation.params.imgIds)
            for number, name in enumerate(RANGES):
                matches[f"{kind}_{name}"] = _matches(evaluation, number)
            whole = matches[f"{kind}_ap"]
            matches |= {f"{kind}_ap50": whole.at(AT_50), f"{kind}_ap75": whole.at(AT_75)}
    return metrics, Outcomes(keys=keys, metrics={}, precisions=matches)


def _check(
    annotations: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    kinds: Sequence[Kind],
) -> None:
    images = {image["id"] for image in annotations["images"]}
    foreign = next((row for row in predictions if row["image_id"] not in images), None)
    if foreign is not None:
        raise CapwrightError(
            f"a prediction is of the picture {foreign['image_id']!r}, which is not among the "
            f"{len(images)} annotated ones: use the annotations that the predictions were made for"
        )
    if "mask" in kinds and any("segmentation" not in row for row in predictions):
        raise CapwrightError(
            "a prediction has no 'segmentation': mask AP needs a mask for each, or ask for box AP"
        )


def _evaluated(
    annotations: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], kind: Kind
) -> Any:
    """A COCOeval that has summarised."""
    # copies, since pycocotools writes into what it is given; new numbers, since it takes an object
    # with the number 0 for none
    truths = [
        {**copy.deepcopy(row), "id": number}
        for number, row in enumerate(annotations["annotations"], start=1)
    ]
    rows = [_row(number, row, kind) for number, row in enumerate(predictions, start=1)]
    evaluation = COCOeval(_coco(annotations, truths), _coco(annotations, rows), IOU_TYPES[kind])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def _matches(evaluation: Any, area: int) -> Matches:
    """What was found in one of COCOeval's ranges of areas; detections that never count left out."""
    params = evaluation.params
    pictures, classes = len(params.imgIds), len(params.catIds)
    truths_PC = np.zeros((pictures, classes), np.int32)
    found: list[tuple[NDArray[Any], ...]] = []
    for number in range(classes):
        start = (number * len(params.areaRng) + area) * pictures
        own = [
            (picture, each)
            for picture, each in enumerate(evaluation.evalImgs[start : start + pictures])
            if each is not None
        ]
        for picture, each in own:
            truths_PC[picture, number] = np.count_nonzero(np.asarray(each["gtIgnore"]) == 0)
        if not own:
            continue
        picture_D = np.repeat([p for p, _ in own], [len(each["dtScores"]) for _, each in own])
        scores_D = np.concatenate([each["dtScores"] for _, each in own])
        hit_TD, ignored_TD = (
            np.concatenate([each[name] for _, each in own], axis=1) > 0
            for name in ("dtMatches", "dtIgnore")
        )
        state_DT = np.where(ignored_TD, IGNORED, np.where(hit_TD, HIT, MISS)).T
        order = np.argsort(-scores_D, kind="stable")  # as pycocotools orders equal scores
        order = order[(state_DT[order] != IGNORED).any(axis=1)]
        found.append((picture_D[order], np.full(len(order), number), state_DT[order]))
    thresholds = len(params.iouThrs)
    empty = (np.zeros(0, int), np.zeros(0, int), np.zeros((0, thresholds), int))
    picture_D, class_D, state_DT = (
        np.concatenate(part) for part in zip(empty, *found, strict=True)
    )
    return Matches(
        picture_D=picture_D.astype(np.int32),
        class_D=class_D.astype(np.int32),
        state_DT=state_DT.astype(np.uint8),
        truths_NC=truths_PC,
    )


def _row(number: int, prediction: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """What pycocotools' `loadRes` makes of a prediction; that fails where there is none at all.

    The area, which says whether a detection is small, is the box's or the mask's.
    """
    row = {**prediction, "id": number, "iscrowd": 0}
    if kind == "mask":
        row["area"] = float(run_lengths.area(row["segmentation"]))
    else:
        row["area"] = row["bbox"][2] * row["bbox"][3]
    return row


def _coco(annotations: Mapping[str, Any], rows: list[dict[str, Any]]) -> Any:
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": list(annotations["images"]),
        "categories": list(annotations["categories"]),
        "annotations": rows,
    }
    coco.createIndex()
    return coco
