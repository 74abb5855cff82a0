from pathlib import Path

import numpy as np
import pytest

from capwright.evaluate.dense_metrics import confusion_matrix, segmentation_metrics
from capwright.evaluate.outcomes import (
    Outcome,
    Outcomes,
    difference_interval,
    hits,
    mean_outcomes,
    read_outcomes,
    segmentation_outcomes,
    values,
    write_outcomes,
)


def keys(count: int) -> tuple[str, ...]:
    return tuple(f"{i:03d}" for i in range(count))


def test_segmentation_outcomes_give_the_metrics_of_any_resample() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, (6, 5, 4)).astype(np.uint8)
    pred = np.where(rng.random(true.shape) < 0.5, true, 2).astype(np.uint8)
    true[rng.random(true.shape) < 0.2] = 255
    drawn = [0, 0, 3, 5, 5, 5]
    weight = np.bincount(drawn, minlength=6)[None]
    expected = segmentation_metrics(confusion_matrix(pred[drawn], true[drawn], 5))
    outcomes = segmentation_outcomes(keys(6), list(pred), list(true), 5)
    for name in ("miou", "macc", "aacc"):
        assert values(outcomes.metrics[name], weight)[0] == pytest.approx(expected[name])


def test_groups_give_the_mean_over_the_classes_that_are_drawn() -> None:
    outcome = hits(np.array([True, False, True, False]), np.array([0, 0, 2, 3]))
    assert values(outcome, np.array([[1, 1, 1, 1], [2, 1, 0, 0], [0, 0, 0, 0]])) == pytest.approx(
        [(0.5 + 1 + 0) / 3, 2 / 3, np.nan], nan_ok=True
    )


def test_a_picture_without_a_value_is_left_out_of_a_mean() -> None:
    outcomes = mean_outcomes(keys(3), [{"rmse": 1.0}, None, {"rmse": 3.0}], ["rmse"])
    assert values(outcomes.metrics["rmse"], np.ones((1, 3)))[0] == 2.0


def test_outcomes_come_back_from_the_file(tmp_path: Path) -> None:
    first = Outcomes(
        keys=("a", "b"),
        metrics={
            "text_retrieval_recall@1": hits(np.array([True, False])),
            "recall": hits(np.array([True, False]), np.array([4, 5])),
        },
    )
    second = Outcomes(keys=("c",), metrics={"iou/sea": hits(np.array([True]))})
    write_outcomes(tmp_path / "x.npz", [first, second])
    found = read_outcomes(tmp_path / "x.npz")
    assert found[0].keys == ("a", "b") and set(found[0].metrics) == set(first.metrics)
    assert found[0].metrics["recall"].group_N.tolist() == [4, 5]
    assert found[0].metrics["text_retrieval_recall@1"].group_N is None
    assert set(found[1].metrics) == {"iou/sea"}
    assert read_outcomes(tmp_path / "absent.npz") == {}


def test_the_interval_is_paired_seeded_and_near_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(400)
    gain = rng.normal(0.05, 0.1, 400)
    first = Outcomes(
        keys=keys(400), metrics={"m": Outcome(part=base, whole=np.ones(400, np.uint8))}
    )
    order = rng.permutation(400)  # stored in another order: keys pair the pictures
    other = Outcomes(
        keys=tuple(np.array(first.keys)[order]),
        metrics={"m": Outcome(part=(base + gain)[order], whole=np.ones(400, np.uint8))},
    )
    low, high = difference_interval([first], [other], "m")
    half = 1.96 * gain.std() / 20
    assert (low, high) == pytest.approx((gain.mean() - half, gain.mean() + half), abs=0.15 * half)
    assert difference_interval([first], [other], "m") == (low, high)
    assert difference_interval([first], [first], "m") == (0.0, 0.0)


def test_without_the_same_pictures_there_is_no_interval() -> None:
    one, two = (Outcomes(keys=keys(n), metrics={"m": hits(np.ones(n, bool))}) for n in (3, 4))
    assert difference_interval([one], [two], "m") is None
    assert difference_interval([one], [one], "other") is None
    assert difference_interval([], [one], "m") is None
