import math
import statistics

import numpy as np
import pytest
import torch
from torchmetrics import Accuracy, JaccardIndex

from capwright.core.errors import CapwrightError
from capwright.evaluate.dense_metrics import (
    DEPTH_METRICS,
    PROBE_DEPTH,
    angular_errors,
    class_ious,
    confusion_matrix,
    crop_mask,
    depth_errors,
    depth_metrics,
    known_depth,
    normals_metrics,
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


@pytest.mark.parametrize("used", [[0, 1, 2, 3], [0, 3], [2]])
def test_miou_equals_torchmetrics_with_ignored_pixels_and_absent_classes(used: list[int]) -> None:
    pred, true = random_labels(6, used)
    reference = JaccardIndex(task="multiclass", num_classes=6, ignore_index=IGNORE, average="none")
    accuracy = Accuracy(task="multiclass", num_classes=6, ignore_index=IGNORE, average="micro")
    pixels = torch.from_numpy(pred.astype(np.int64)), torch.from_numpy(true.astype(np.int64))
    ious, counted = reference(*pixels).numpy(), sorted({*pred[true != IGNORE].flat, *used})
    metrics = segmentation_metrics(confusion_matrix(pred, true, 6))
    assert metrics["miou"] == pytest.approx(float(ious[counted].mean()), abs=1e-6)
    assert metrics["aacc"] == pytest.approx(float(accuracy(*pixels)), abs=1e-6)
    assert metrics["classes_counted"] == len(counted)


def test_every_depth_metric_equals_a_float64_reference() -> None:
    rng = np.random.default_rng(2)
    true = rng.uniform(0.5, 20, (3, 6, 5)).astype(np.float32)
    pred = (true * rng.uniform(0.4, 2.4, true.shape)).astype(np.float32)
    true[rng.random(true.shape) < 0.2] = 0
    true[1, 0, 0] = np.nan
    rows = []
    for p, t in zip(pred.astype(float), true.astype(float), strict=True):
        pairs = [(a, b) for a, b in zip(p.flat, t.flat, strict=True) if b > 0]
        ratios = [max(a / b, b / a) for a, b in pairs]
        log10 = np.mean([abs(math.log10(a) - math.log10(b)) for a, b in pairs])
        rows.append([log10, *(np.mean([r < 1.25**n for r in ratios]) for n in (1, 2, 3))])
    found = depth_metrics(pred, true, names=DEPTH_METRICS)
    assert [found[name] for name in ("log10", "delta1", "delta2", "delta3")] == pytest.approx(
        np.mean(rows, axis=0), abs=1e-12
    )
    assert found["delta1"] < found["delta2"] < found["delta3"] < 1
    assert {name: found[name] for name in PROBE_DEPTH} == depth_metrics(pred, true)


def test_the_crops_are_those_of_the_benchmarks() -> None:
    rows, columns = np.nonzero(crop_mask("eigen", 480, 640))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (45, 471, 41, 601)
    rows, columns = np.nonzero(crop_mask("garg", 375, 1242))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (153, 371, 44, 1197)
    for height, width in ((375, 1242), (370, 1226), (352, 1216)):
        rows, columns = np.nonzero(crop_mask("kitti_eigen", height, width))
        assert (rows.min(), rows.max()) == (int(0.3324324 * height), int(0.91351351 * height) - 1)
        assert columns.min() == int(0.0359477 * width)
        assert columns.max() == int(0.96405229 * width) - 1
        assert len(rows) == len(set(rows)) * len(set(columns))
    assert crop_mask("none", 3, 4).all()
    with pytest.raises(CapwrightError, match="crop 'nyu' is unknown: allowed are eigen, garg"):
        crop_mask("nyu", 3, 4)


def test_depth_is_scored_inside_the_crop_and_between_the_caps() -> None:
    true = np.full((480, 640), 5.0)
    true[100, 100], true[100, 101], true[100, 102] = 0.0, 12.0, np.nan
    known = known_depth(true, least_m=1e-3, most_m=10, crop="eigen")
    assert known.sum() == 426 * 560 - 3
    assert depth_errors(true, true, np.zeros_like(known)) is None
    assert depth_errors(true + 1, true, known)["rmse"] == pytest.approx(1)


def test_angles_between_normals_equal_a_plain_reference() -> None:
    rng = np.random.default_rng(3)
    true = rng.normal(size=(2, 3, 4, 5))
    pred = true + 0.3 * rng.normal(size=true.shape)
    true[0, :, 0, :2] = 0  # unknown
    pred[1, :, 2, 2] = 0  # says nothing
    expected = []
    for n, y, x in np.ndindex(2, 4, 5):
        a, b = pred[n, :, y, x], true[n, :, y, x]
        if any(b):
            cosine = sum(a * b) / math.sqrt(sum(a * a) * sum(b * b)) if any(a) else 0
            expected.append(math.degrees(math.acos(cosine)))
    degrees = angular_errors(pred, true)
    assert degrees == pytest.approx(expected)
    metrics = normals_metrics(degrees)
    assert metrics == pytest.approx(
        {
            "mean_degrees": statistics.mean(expected),
            "median_degrees": statistics.median(expected),
            "within_11.25": np.mean([e < 11.25 for e in expected]),
            "within_22.5": np.mean([e < 22.5 for e in expected]),
            "within_30": np.mean([e < 30 for e in expected]),
        }
    )
    assert 0 < metrics["within_11.25"] < metrics["within_30"] < 1
    assert set(normals_metrics(np.zeros(0)).values()) == {None}
