"""Cached feature maps as tensors: one vector a cell, channels of equal size.

Reads: records of `captions/features.py`. Writes nothing.

Shapes: B pictures, L cells of the middle map, M cells of the deep map, C channels, W width.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# The maps' standard deviations over natural pictures, so that all inputs are of size one.
MIDDLE_SCALE, DEEP_SCALE = 1 / 4.2, 1 / 1.65


@dataclass(frozen=True)
class Maps:
    """A batch of both maps, float32."""

    middle_BLC: Tensor
    deep_BMC: Tensor


def load_maps(records: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> Maps:
    """The maps of some records."""
    picked = records[rows]
    return Maps(
        _cells(picked["middle"]).mul_(MIDDLE_SCALE), _cells(picked["deep"]).mul_(DEEP_SCALE)
    )


def repeat_cells(deep_BMW: Tensor, count: int) -> Tensor:
    """Repeat the M cells of a square map to a square of `count` cells: [B, count, W]."""
    side = math.isqrt(deep_BMW.shape[1])
    times = math.isqrt(count) // side
    square = deep_BMW.unflatten(1, (side, side))
    repeated: Tensor = square.repeat_interleave(times, 1).repeat_interleave(times, 2)
    return repeated.flatten(1, 2)


def pool_cells(middle_BLC: Tensor, count: int) -> Tensor:
    """Mean over the squares of cells that make up a map of `count` cells: [B, count, C]."""
    side, wanted = math.isqrt(middle_BLC.shape[1]), math.isqrt(count)
    times = side // wanted
    squares = middle_BLC.unflatten(1, (wanted, times, wanted, times))
    pooled: Tensor = squares.mean((2, 4))
    return pooled.flatten(1, 2)


def _cells(map_BChw: npt.NDArray[np.float16]) -> Tensor:
    cells_BCL: Tensor = torch.from_numpy(map_BChw).flatten(2)
    cells_BLC: Tensor = cells_BCL.transpose(1, 2).to(torch.float32).contiguous()
    return cells_BLC
