"""A set of classes at every pixel, made when it is read; it pickles."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from capwright.datasets.sets import IGNORE, SegmentationItem, SegmentationSet

COLOURS = ((128, 128, 128), (220, 30, 30), (30, 30, 220))
CLASSES = ("background", "apples", "berries")


@dataclass(frozen=True)
class Squares:
    """A coloured square on grey; the first row has no label."""

    height: int
    width: int

    def __call__(self, index: int) -> SegmentationItem:
        rng = np.random.default_rng(index)
        seg_HW = np.zeros((self.height, self.width), np.uint8)
        half = min(self.height, self.width) // 2
        top, left = rng.integers(0, self.height - half), rng.integers(0, self.width - half)
        seg_HW[top : top + half, left : left + half] = 1 + index % 2
        pixels = np.array(COLOURS, np.uint8)[seg_HW]
        seg_HW[0] = IGNORE
        return SegmentationItem(key=f"{index:03d}", image=Image.fromarray(pixels), seg_HW=seg_HW)


def squares(count: int, height: int = 48, width: int = 64) -> SegmentationSet:
    return SegmentationSet(
        name="squares",
        keys=tuple(f"{index:03d}" for index in range(count)),
        read=Squares(height, width),
        classes=CLASSES,
        has_background=True,
    )
