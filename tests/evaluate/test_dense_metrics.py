import numpy as np
import pytest

from capwright.evaluate.dense_metrics import (
    class_ious,
    confusion_matrix,
    depth_metrics,
    segmentation_metrics,
)

IGNORE = 255


def random_labels(classes: int, used: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = rng.choice(np.array(used, np.uint8), (4, 9, 7))
    pred = np.where(rng.random(true.shape) < 0.6, true, rng.choice(used, true.shape))
    pred = pred.astype(np.uint8)
    true[rng.random(true.shape) < 0.2] = IGNORE
    return pred, true


def test_segmentation_equals_a_plain_reference_with_ignored_pixels_and_absent_classes() -> None:
    classes, used = 6, [0, 1, 2, 4]
    pred, true = random_labels(classes, used)
    kept = [(p, t) for p, t in zip(pred.flat, true.flat, strict=True) if t != IGNORE]
    ious, accs = {}, {}
    for c in range(classes):
        both = sum(p == c and t == c for p, t in kept)
        either = sum(p == c or t == c for p, t in kept)
        truth = sum(t == c for _, t in kept)
        if either:
            ious[c] = both / either
        if truth:
            accs[c] = both / truth

    confusion = confusion_matrix(pred, true, classes)
    metrics = segmentation_metrics(confusion)

    assert confusion.sum() == len(kept)
    assert metrics["miou"] == pytest.approx(np.mean(list(ious.values())), abs=1e-12)
    assert metrics["macc"] == pytest.approx(np.mean(list(accs.values())), abs=1e-12)
    assert metrics["aacc"] == pytest.approx(np.mean([p == t for p, t in kept]), abs=1e-12)
    assert metrics["classes_counted"] == 4
    assert class_ious(confusion) == pytest.approx([ious.get(c) for c in range(classes)])


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    true, pred = np.zeros((1, 2, 2), np.uint8), np.array([[[0, 0], [0, 1]]], np.uint8)
    metrics = segmentation_metrics(confusion_matrix(pred, true, 3))
    assert metrics == {
        "miou": pytest.approx((3 / 4 + 0) / 2),
        "macc": pytest.approx(3 / 4),
        "aacc": pytest.approx(3 / 4),
        "classes_counted": 2,
    }


def test_segmentation_without_a_labelled_pixel_has_no_value() -> None:
    true = np.full((1, 2, 2), IGNORE, np.uint8)
    metrics = segmentation_metrics(confusion_matrix(np.zeros_like(true), true, 3))
    assert metrics == {"miou": None, "macc": None, "aacc": None, "classes_counted": 0}


def test_depth_equals_a_plain_reference_per_picture() -> None:
    rng = np.random.default_rng(1)
    true = rng.uniform(0.5, 20, (3, 6, 5)).astype(np.float32)
    pred = (true * rng.uniform(0.6, 1.6, true.shape)).astype(np.float32)
    true[rng.random(true.shape) < 0.2] = 0
    objects = rng.random(true.shape) < 0.3
    objects[2] = False  # a picture without objects counts in the whole alone

    def reference(masks: np.ndarray) -> tuple[float, float, float]:
        rows = []
        for p, t, mask in zip(pred.astype(float), true.astype(float), masks, strict=True):
            pairs = [(a, b) for a, b, m in zip(p.flat, t.flat, mask.flat, strict=True) if m and b]
            if pairs:
                squares = [(a - b) ** 2 for a, b in pairs]
                rel = [abs(a - b) / b for a, b in pairs]
                close = [max(a / b, b / a) < 1.25 for a, b in pairs]
                rows.append((np.mean(squares) ** 0.5, np.mean(rel), np.mean(close)))
        return tuple(np.mean(rows, axis=0))

    metrics = depth_metrics(pred, true, objects)
    whole, alone = reference(np.ones_like(objects)), reference(objects)
    assert [metrics[n] for n in ("rmse", "absrel", "delta1")] == pytest.approx(whole)
    names = ("rmse_objects", "absrel_objects", "delta1_objects")
    assert [metrics[n] for n in names] == pytest.approx(alone)
    assert whole[0] != pytest.approx(alone[0])


def test_depth_without_a_known_pixel_has_no_value() -> None:
    nothing = np.zeros((2, 3, 3))
    assert depth_metrics(nothing + 1, nothing) == {"rmse": None, "absrel": None, "delta1": None}


def test_a_prediction_of_zero_metres_is_wrong_and_finite() -> None:
    metrics = depth_metrics(np.zeros((1, 2, 2)), np.ones((1, 2, 2)))
    assert metrics == {"rmse": 1.0, "absrel": 1.0, "delta1": 0.0}
