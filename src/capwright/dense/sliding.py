"""Inference on pictures larger than what a model learned on: windows whose overlaps are averaged.

Windows move by `stride`; the last of a row or column ends at the edge, so every window is full, and
a picture that fits in one window is seen whole. Windows go through the model in batches.

Shapes: B pictures, C outputs, H and W pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.core.errors import CapwrightError


def slide(
    model: Callable[[Tensor], Tensor],
    images_B3HW: Tensor,
    *,
    window: int,
    stride: int,
    batch: int = 8,
) -> Tensor:
    """Outputs [B, C, H, W] of windows of `window` pixels a side; 0 is the whole picture."""
    height, width = images_B3HW.shape[-2:]
    if not window or max(height, width) <= window:
        return model(images_B3HW)
    if not 0 < stride <= window:
        raise CapwrightError(
            f"windows of {window} pixels cannot move by {stride}: allowed are 1 to {window}"
        )
    down, across = min(window, height), min(window, width)
    places = [(y, x) for y in starts(height, down, stride) for x in starts(width, across, stride)]
    total: Tensor | None = None
    count_HW = images_B3HW.new_zeros(height, width)
    at_once = max(1, batch // len(images_B3HW))
    for first in range(0, len(places), at_once):
        part = places[first : first + at_once]
        cut = torch.cat([images_B3HW[..., y : y + down, x : x + across] for y, x in part])
        outputs = model(cut)
        if total is None:
            total = outputs.new_zeros(len(images_B3HW), outputs.shape[1], height, width)
        for (y, x), out in zip(part, outputs.split(len(images_B3HW)), strict=True):
            total[..., y : y + down, x : x + across] += out
            count_HW[y : y + down, x : x + across] += 1
    assert total is not None
    return total / count_HW


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side, so that they cover it and none leaves it."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def resize_short_side(images_B3HW: Tensor, short: int, longest: int | None = None) -> Tensor:
    """Enlarge or shrink so that the shorter side is `short`, the longer at most `longest`."""
    height, width = images_B3HW.shape[-2:]
    scale = short / min(height, width)
    if longest:
        scale = min(scale, longest / max(height, width))
    size = (round(height * scale), round(width * scale))
    if size == (height, width):
        return images_B3HW
    return F.interpolate(images_B3HW, size=size, mode="bilinear", antialias=True)
