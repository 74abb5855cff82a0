"""Random views of a picture and its labels that keep depth true: mirrored, shifted, never scaled.

Enlarging a crop would make everything look nearer while its depth in metres stays, so views only
mirror and shift. What a shift uncovers repeats the picture's edge and is not labelled (class
IGNORE, depth 0). A shift is a share of the side, so pictures and labels may differ in size.

Shapes: B pictures, S side of the picture, L side of the labels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORE = 255
MAX_SHIFT = 1 / 8  # share of the side


def random_views(
    images_B3SS: Tensor, seg_BLL: Tensor, depth_BLL: Tensor, *, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror each picture with its labels with probability 1/2 and shift it by up to MAX_SHIFT."""
    batch = len(images_B3SS)
    mirror_B = rng.random(batch) < 0.5
    shift_B2 = rng.uniform(-MAX_SHIFT, MAX_SHIFT, (batch, 2))
    return (
        _view(images_B3SS, mirror_B, shift_B2, None),
        _view(seg_BLL, mirror_B, shift_B2, IGNORE),
        _view(depth_BLL, mirror_B, shift_B2, 0),
    )


def _view(
    values: Tensor,
    mirror_B: NDArray[np.bool_],
    shift_B2: NDArray[np.float64],
    fill: int | None,
) -> Tensor:
    side = values.shape[-1]
    positions = np.arange(side)
    viewed = torch.empty_like(values)
    for i, (mirror, shift_2) in enumerate(zip(mirror_B, shift_B2, strict=True)):
        down, right = np.rint(shift_2 * side).astype(int)
        rows, columns = positions - down, positions - right
        outside_rows, outside_columns = (
            torch.from_numpy((index < 0) | (index >= side)) for index in (rows, columns)
        )
        rows, columns = rows.clip(0, side - 1), columns.clip(0, side - 1)
        if mirror:
            columns = side - 1 - columns
        view = values[i][..., torch.from_numpy(rows), :][..., torch.from_numpy(columns)]
        if fill is not None:
            view[..., outside_rows, :] = fill
            view[..., :, outside_columns] = fill
        viewed[i] = view
    return viewed
