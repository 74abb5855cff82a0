"""AP from matches equals pycocotools', on a set as it is and on pictures drawn again and again."""

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from capwright.evaluate.detection_metrics import measured
from capwright.evaluate.matches import Matches
from capwright.evaluate.outcomes import (
    Outcomes,
    difference_interval,
    read_outcomes,
    write_outcomes,
)
from toy_detections import drawn, random_set

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # COCOeval's first six


def by_hand(annotations: dict[str, Any], rows: list[dict[str, Any]], kind: str) -> list[float]:
    """pycocotools' six APs; it takes no empty list, and an object numbered 0 for none."""
    truth = COCO()
    truth.dataset = copy.deepcopy(annotations)
    for number, row in enumerate(truth.dataset["annotations"], start=1):
        row["id"] = number
    if kind == "segm":  # or loadRes takes the boxes' areas
        rows = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(copy.deepcopy(rows)) if rows else COCO()
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:6]]


def of_matches(outcomes: Outcomes, kind: str, weights: np.ndarray) -> list[float]:
    return [float(outcomes.precisions[f"{kind}_{n}"].values(weights[None])[0]) for n in NAMES]


def nan_for_nothing(values: list[float]) -> list[float]:
    return [np.nan if value == -1 else value for value in values]


@pytest.mark.parametrize("seed", range(12))
def test_without_resampling_ap_is_pycocotools(seed: int) -> None:
    annotations, rows = random_set(seed)
    assert any(truth["iscrowd"] for truth in annotations["annotations"]) or seed
    _, outcomes = measured(annotations, rows, ("box", "mask"))
    assert outcomes.keys == tuple(str(10 + i) for i in range(8))
    once = np.ones(8, int)
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        expected = nan_for_nothing(by_hand(annotations, rows, theirs))
        assert of_matches(outcomes, kind, once) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_ap_of_drawn_pictures_is_pycocotools_on_a_set_that_holds_them(seed: int) -> None:
    annotations, rows = random_set(seed)
    rng = np.random.default_rng(seed)
    for row in rows:  # among equal scores the order of copies would count
        row["score"] = rng.random()
    _, outcomes = measured(annotations, rows, ("box", "mask"))
    for weights in rng.multinomial(8, [1 / 8] * 8, size=3):
        copies, found = drawn(annotations, rows, weights)
        for kind, theirs in (("box", "bbox"), ("mask", "segm")):
            expected = nan_for_nothing(by_hand(copies, found, theirs))
            assert of_matches(outcomes, kind, weights) == pytest.approx(
                expected, abs=1e-9, nan_ok=True
            )


def test_without_predictions_ap_is_0_and_without_truths_nothing() -> None:
    annotations, rows = random_set(0)
    _, outcomes = measured(annotations, [], ("box",))
    assert of_matches(outcomes, "box", np.ones(8, int))[:3] == [0, 0, 0]
    _, outcomes = measured({**annotations, "annotations": []}, rows, ("box",))
    assert np.isnan(of_matches(outcomes, "box", np.ones(8, int))).all()


def test_matches_come_back_from_the_file(tmp_path: Path) -> None:
    annotations, rows = random_set(1)
    _, outcomes = measured(annotations, rows, ("box",))
    write_outcomes(tmp_path / "x.npz", [outcomes])
    found = read_outcomes(tmp_path / "x.npz")[0]
    assert found.keys == outcomes.keys and found.precisions.keys() == outcomes.precisions.keys()
    assert not found.metrics
    weights = np.random.default_rng(0).multinomial(8, [1 / 8] * 8, size=20)
    for name, matches in outcomes.precisions.items():
        np.testing.assert_array_equal(
            found.precisions[name].values(weights), matches.values(weights)
        )


def test_the_interval_of_ap_is_paired_by_picture() -> None:
    annotations, rows = random_set(2, pictures=30)
    worse = [row for number, row in enumerate(rows) if number % 3]
    _, full = measured(annotations, rows)
    _, part = measured(annotations, worse)
    low, high = difference_interval([full], [part], "box_ap", resamples=200)
    assert low < high < 0
    order = np.random.default_rng(0).permutation(30)  # stored in another order
    turned = Outcomes(
        keys=tuple(np.array(part.keys)[order]),
        metrics={},
        precisions={name: each.reordered(order) for name, each in part.precisions.items()},
    )
    again = difference_interval([full], [turned], "box_ap", resamples=200)
    assert again == pytest.approx((low, high), abs=1e-12)
    assert difference_interval([full], [full], "box_ap50", resamples=50) == (0.0, 0.0)


def test_a_hit_before_and_after_a_miss() -> None:
    """By hand: hits at ranks 1 and 3, three truths; precision 1 up to recall 1/3, 2/3 up to 2/3."""
    matches = Matches(
        picture_D=np.array([0, 1, 1]),
        class_D=np.zeros(3, int),
        state_DT=np.array([[2], [1], [2]], np.uint8),
        truths_NC=np.array([[1], [2]]),
    )
    weights = np.array([[1, 1], [0, 1], [2, 0], [0, 0]])
    expected = [(34 + 33 * 2 / 3) / 101, 51 * 0.5 / 101, 1, np.nan]
    assert matches.values(weights) == pytest.approx(expected, nan_ok=True)
