"""What average precision needs of every picture, so that it can be taken over any choice of them.

AP at one IoU threshold is the mean, over the recalls 0, 0.01, ..., 1, of the highest precision at
that recall or a higher one; over detections by falling score, recall is (hits so far) / truths and
precision (hits so far) / (hits and misses so far). The mean over thresholds and over the classes
that have truths is COCO's AP. Detections matched with a crowd, or with an object out of a range of
areas, count as neither.

Whether a detection is a hit does not depend on other pictures, and neither does its place in the
order of scores. So with the hits in that order, and the truths of each picture, a picture that is
drawn n times adds n to every sum that one drawn once adds 1 to: the numbers are those of
pycocotools on a set that holds it n times.

Shapes: N pictures, C classes, T thresholds, D detections, R resamples, P recalls.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

RECALLS = np.linspace(0.0, 1.0, 101)
IGNORED, MISS, HIT = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Detections in the order of their classes, and of falling scores within a class."""

    picture_D: NDArray[np.integer]  # from 0
    class_D: NDArray[np.integer]  # from 0, rising
    state_DT: NDArray[np.uint8]  # IGNORED, MISS or HIT at each threshold
    truths_NC: NDArray[np.integer]  # objects to be found

    def __len__(self) -> int:
        return len(self.truths_NC)

    def at(self, threshold: int) -> "Matches":
        """The same at one threshold, by its number."""
        return replace(self, state_DT=self.state_DT[:, threshold : threshold + 1])

    def reordered(self, order_N: NDArray[np.integer]) -> "Matches":
        """The same with picture `order_N[n]` at place n."""
        place_N = np.empty_like(order_N)
        place_N[order_N] = np.arange(len(order_N))
        return replace(self, picture_D=place_N[self.picture_D], truths_NC=self.truths_NC[order_N])

    def values(self, weight_RN: NDArray[np.number]) -> NDArray[np.float64]:
        """AP [R] where picture n counts `weight_RN[r, n]` times; nan without any truth."""
        weight_NR = np.ascontiguousarray(weight_RN.T, np.float64)
        truths_CR = self.truths_NC.T.astype(np.float64) @ weight_NR
        sum_R = np.zeros(len(weight_RN))
        for truths_R, chosen in zip(truths_CR, self._classes(), strict=True):
            weight_DR = weight_NR[self.picture_D[chosen]]
            so_far_DR = weight_DR.cumsum(axis=0)
            for state_D in self.state_DT[chosen].T:
                ap_R = _precision(weight_DR, so_far_DR, state_D, truths_R)
                sum_R += np.where(truths_R > 0, ap_R, 0.0)
        counted_R = (truths_CR > 0).sum(axis=0) * self.state_DT.shape[1]
        return np.where(counted_R > 0, sum_R / np.maximum(counted_R, 1), np.nan)

    def _classes(self) -> Iterator[slice]:
        """The detections of each class."""
        bounds = np.searchsorted(self.class_D, np.arange(self.truths_NC.shape[1] + 1))
        return (slice(start, end) for start, end in pairwise(bounds.tolist()))


def _precision(
    weight_DR: NDArray[np.float64],
    so_far_DR: NDArray[np.float64],
    state_D: NDArray[np.uint8],
    truths_R: NDArray[np.float64],
) -> NDArray[np.float64]:
    """AP [R] of one class at one threshold; `so_far_DR` are the running sums of the weights.

    Looks at hits alone: a miss neither raises the recall nor has the highest precision from there.
    """
    hit_H, ignored_I = (np.flatnonzero(state_D == state) for state in (HIT, IGNORED))
    if not len(hit_H):
        return np.zeros_like(truths_R)
    hits_HR = weight_DR[hit_H].cumsum(axis=0)
    counted_HR = so_far_DR[hit_H]
    if len(ignored_I):
        ignored_IR = np.pad(weight_DR[ignored_I].cumsum(axis=0), ((1, 0), (0, 0)))
        counted_HR -= ignored_IR[np.searchsorted(ignored_I, hit_H)]
    precision_HR = hits_HR / (counted_HR + np.spacing(1))
    highest_HR = np.maximum.accumulate(precision_HR[::-1], axis=0)[::-1]
    recall_HR = hits_HR / np.maximum(truths_R, 1)
    reached_HR = np.searchsorted(RECALLS, recall_HR, side="right")  # recalls up to this hit
    new_HR = np.diff(reached_HR, axis=0, prepend=0)
    ap_R: NDArray[np.float64] = (highest_HR * new_HR).sum(axis=0) / len(RECALLS)
    return ap_R
