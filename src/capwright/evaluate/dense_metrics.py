"""Segmentation, depth and surface normals as the field scores them, on numpy arrays.

Segmentation counts pixels over all pictures in one confusion matrix (rows truth, columns
prediction): mIoU is the mean over classes of intersection over union, mAcc of recall, aAcc the
share of right pixels. A class in neither truth nor prediction has no IoU and is left out of the
mean. Depth (Eigen et al., arXiv 1406.2283): RMSE in metres, AbsRel = mean |pred - true| / true,
log10 = mean |log10 pred - log10 true|, delta1, 2, 3 = share with max(pred/true, true/pred) < 1.25,
1.25^2, 1.25^3; each per picture, then the mean over pictures. Objects alone: pixels whose true
class is not the background. Normals (Fouhey et al., ICCV 2013): the angle to the true normal, over
all pixels of all pictures.

Shapes: N pictures, C classes, H height, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from capwright.core.errors import CapwrightError

IGNORE = 255
PROBE_DEPTH = ("rmse", "absrel", "delta1")  # what dense-probe/v1 reports
DEPTH_METRICS = ("rmse", "absrel", "log10", "delta1", "delta2", "delta3")
LEAST_DEPTH = 1e-12  # metres; a prediction of 0 is as wrong as can be, and finite
NORMALS_BOUNDS = (11.25, 22.5, 30.0)  # degrees

Crop = Literal["eigen", "garg", "kitti_eigen", "none"]
# shares of the height (top, bottom) and the width (left, right)
CROPS: Mapping[str, tuple[float, float, float, float]] = {
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "kitti_eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "none": (0.0, 1.0, 0.0, 1.0),
}


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
    *,
    names: Sequence[str] = PROBE_DEPTH,
) -> dict[str, float | None]:
    """The metrics `names` of `depth_errors`; with a mask also each of them with `_objects`.

    Pixels with true depth 0 or not finite are left out, and so are pictures without any pixel; None
    without pictures.
    """
    assert pred_NHW.shape == true_NHW.shape, (pred_NHW.shape, true_NHW.shape)
    valid_NHW = np.isfinite(true_NHW) & (true_NHW > 0)
    metrics = _mean_over_pictures(pred_NHW, true_NHW, valid_NHW, names)
    if objects_NHW is not None:
        over_objects = _mean_over_pictures(pred_NHW, true_NHW, valid_NHW & objects_NHW, names)
        metrics |= {f"{name}_objects": value for name, value in over_objects.items()}
    return metrics


def depth_errors(
    pred_HW: NDArray[np.floating],
    true_HW: NDArray[np.floating],
    valid_HW: NDArray[np.bool_] | None = None,
) -> dict[str, float] | None:
    """`rmse`, `absrel`, `log10`, `delta1`, `delta2`, `delta3` of one picture, in float64.

    `valid_HW` is where the truth is known (by default where it is positive and finite); None
    without such a pixel.
    """
    if valid_HW is None:
        valid_HW = np.isfinite(true_HW) & (true_HW > 0)
    if not valid_HW.any():
        return None
    pred, true = pred_HW[valid_HW].astype(np.float64), true_HW[valid_HW].astype(np.float64)
    difference = pred - true
    positive = np.maximum(pred, LEAST_DEPTH)
    ratio = np.maximum(pred / true, true / positive)
    return {
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "absrel": float(np.mean(np.abs(difference) / true)),
        "log10": float(np.mean(np.abs(np.log10(positive / true)))),
        "delta1": float(np.mean(ratio < 1.25)),
        "delta2": float(np.mean(ratio < 1.25**2)),
        "delta3": float(np.mean(ratio < 1.25**3)),
    }


def known_depth(
    true_HW: NDArray[np.floating], *, least_m: float, most_m: float, crop: Crop = "none"
) -> NDArray[np.bool_]:
    """Where a picture is scored: inside the crop and with a truth between both caps.

    The field clips predictions to the same caps before it scores them: `np.clip(pred, least_m,
    most_m)`. Usual are 0.001 to 10 m for NYUv2 with the Eigen crop, and 0.001 to 80 m for KITTI
    with the Garg crop.
    """
    inside = np.isfinite(true_HW) & (true_HW > least_m) & (true_HW < most_m)
    height, width = true_HW.shape
    mask_HW: NDArray[np.bool_] = inside & crop_mask(crop, height, width)
    return mask_HW


def crop_mask(crop: Crop, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels [H, W] inside a benchmark's crop.

    "eigen" is NYUv2's, rows 45 to 471 and columns 41 to 601 of 480 x 640 and in proportion at other
    sizes; "garg" is KITTI's (Garg et al., arXiv 1603.04992) and "kitti_eigen" Eigen's for KITTI,
    both shares of the sides; "none" is all.
    """
    if crop not in CROPS:
        raise CapwrightError(f"crop {crop!r} is unknown: allowed are {', '.join(CROPS)}")
    top, bottom, left, right = CROPS[crop]
    mask_HW = np.zeros((height, width), np.bool_)
    # 1e-6 of a pixel: 45/480 * 480 must be 45 also where the product is a little below
    rows, columns = (
        slice(*(int(share * side + 1e-6) for share in shares))
        for shares, side in (((top, bottom), height), ((left, right), width))
    )
    mask_HW[rows, columns] = True
    return mask_HW


def angular_errors(
    pred_N3HW: NDArray[np.floating], true_N3HW: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Degrees between predicted and true normals at every pixel whose true normal is not 0.

    Neither needs unit length. A predicted normal of length 0 is 90 degrees off: it says nothing.
    """
    assert pred_N3HW.shape == true_N3HW.shape, (pred_N3HW.shape, true_N3HW.shape)
    pred, true = (
        np.moveaxis(vectors, -3, -1).reshape(-1, 3).astype(np.float64)
        for vectors in (pred_N3HW, true_N3HW)
    )
    length = np.linalg.norm(true, axis=1)
    known = np.isfinite(length) & (length > 0)
    pred, true, length = pred[known], true[known], length[known]
    both = np.maximum(np.linalg.norm(pred, axis=1) * length, 1e-300)
    cosine = np.einsum("ij,ij->i", pred, true) / both
    degrees: NDArray[np.float64] = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    return degrees


def normals_metrics(degrees: NDArray[np.floating]) -> dict[str, float | None]:
    """Over all pixels of all pictures: `mean_degrees`, `median_degrees`, and the shares within
    11.25, 22.5 and 30 degrees; None without a pixel.
    """
    within = {f"within_{bound:g}": bound for bound in NORMALS_BOUNDS}
    if not degrees.size:
        return dict.fromkeys(("mean_degrees", "median_degrees", *within))
    metrics: dict[str, float | None] = {
        "mean_degrees": float(np.mean(degrees, dtype=np.float64)),
        "median_degrees": float(np.median(degrees)),
    }
    return metrics | {name: float(np.mean(degrees < bound)) for name, bound in within.items()}


def _mean_over_pictures(
    pred_NHW: NDArray[np.floating],
    true_NHW: NDArray[np.floating],
    valid_NHW: NDArray[np.bool_],
    names: Sequence[str],
) -> dict[str, float | None]:
    pictures = zip(pred_NHW, true_NHW, valid_NHW, strict=True)
    rows = [row for picture in pictures if (row := depth_errors(*picture)) is not None]
    if not rows:
        return dict.fromkeys(names)
    return {name: float(np.mean([row[name] for row in rows])) for name in names}
