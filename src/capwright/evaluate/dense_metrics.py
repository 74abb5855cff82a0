"""Segmentation and depth metrics as the field reports them, on numpy arrays.

Segmentation counts pixels over all pictures in one confusion matrix (rows truth, columns
prediction): mIoU is the mean over classes of intersection over union, mAcc of recall, aAcc the
share of right pixels. A class in neither truth nor prediction has no IoU and is left out of the
mean. Depth (Eigen et al., arXiv 1406.2283): RMSE in metres, AbsRel = mean |pred - true| / true,
delta1 = share with max(pred/true, true/pred) < 1.25; each per picture, then the mean over pictures.
Objects alone: pixels whose true class is not the background.

Shapes: N pictures, C classes, H height, W width.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

IGNORE = 255


def confusion_matrix(
    pred_NHW: NDArray[np.integer], true_NHW: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """Pixel counts [C, C], rows truth, columns prediction; pixels with truth IGNORE left out."""
    assert pred_NHW.shape == true_NHW.shape, (pred_NHW.shape, true_NHW.shape)
    valid = true_NHW != IGNORE
    pairs = true_NHW[valid].astype(np.int64) * classes + pred_NHW[valid]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def segmentation_metrics(confusion_CC: NDArray[np.int64]) -> dict[str, float | None]:
    """mIoU, mAcc and aAcc (0 to 1) and how many classes the mIoU is over; None without a pixel."""
    hits = np.diag(confusion_CC).astype(np.float64)
    true, pred = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    union = true + pred - hits
    counted, present = union > 0, true > 0
    if not present.any():
        return {"miou": None, "macc": None, "aacc": None, "classes_counted": 0}
    return {
        "miou": float((hits[counted] / union[counted]).mean()),
        "macc": float((hits[present] / true[present]).mean()),
        "aacc": float(hits.sum() / true.sum()),
        "classes_counted": int(counted.sum()),
    }


def class_ious(confusion_CC: NDArray[np.int64]) -> list[float | None]:
    """IoU of every class; None for a class in neither truth nor prediction."""
    hits = np.diag(confusion_CC)
    union = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1) - hits
    return [float(h / u) if u else None for h, u in zip(hits, union, strict=True)]


def depth_metrics(
    pred_NHW: NDArray[np.floating],
    true_NHW: NDArray[np.floating],
    objects_NHW: NDArray[np.bool_] | None = None,
) -> dict[str, float | None]:
    """`rmse` (metres), `absrel`, `delta1`; with a mask also each of them with `_objects`.

    Pixels with true depth 0 or not finite are left out, and so are pictures without any pixel; None
    without pictures.
    """
    assert pred_NHW.shape == true_NHW.shape, (pred_NHW.shape, true_NHW.shape)
    valid_NHW = np.isfinite(true_NHW) & (true_NHW > 0)
    metrics = _mean_over_pictures(pred_NHW, true_NHW, valid_NHW)
    if objects_NHW is not None:
        over_objects = _mean_over_pictures(pred_NHW, true_NHW, valid_NHW & objects_NHW)
        metrics |= {f"{name}_objects": value for name, value in over_objects.items()}
    return metrics


def _mean_over_pictures(
    pred_NHW: NDArray[np.floating], true_NHW: NDArray[np.floating], valid_NHW: NDArray[np.bool_]
) -> dict[str, float | None]:
    rows = [
        _depth_errors(pred[valid].astype(np.float64), true[valid].astype(np.float64))
        for pred, true, valid in zip(pred_NHW, true_NHW, valid_NHW, strict=True)
        if valid.any()
    ]
    names = ("rmse", "absrel", "delta1")
    if not rows:
        return dict.fromkeys(names)
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def _depth_errors(pred: NDArray[np.float64], true: NDArray[np.float64]) -> Mapping[str, float]:
    difference = pred - true
    ratio = np.maximum(pred / true, true / np.maximum(pred, 1e-12))
    return {
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "absrel": float(np.mean(np.abs(difference) / true)),
        "delta1": float(np.mean(ratio < 1.25)),
    }
