"""Random resized crops as affine maps, so that labels and further views follow the same geometry.

A crop is drawn from (seed, sample, epoch) and written as the 2x3 matrix that `affine_grid` takes; a
mirrored one has a negative first entry. Coordinates run from -1 to 1 over the picture.

Shapes: B pictures, S stored side, H image side.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from capwright.pretrain.draws import Draws
from capwright.pretrain.settings.augmentation import Augmentation


def crops(draws: Draws, augmentation: Augmentation, purpose: str = "augmentation") -> Tensor:
    """A crop of every picture, float [B, 2, 3]; each purpose has its own."""
    area, aspect, left, top, mirror = draws.uniform(purpose, 5).T
    low, high = augmentation.crop_area
    area = low + (high - low) * area
    low, high = np.log(augmentation.crop_aspect)
    aspect = np.exp(low + (high - low) * aspect)
    width = np.minimum(np.sqrt(area * aspect), 1.0)  # sides as shares of the picture's
    height = np.minimum(np.sqrt(area / aspect), 1.0)
    centre_x = (1 - width) * (2 * left - 1)
    centre_y = (1 - height) * (2 * top - 1)
    sign = np.where(mirror < 0.5, -1.0, 1.0) if augmentation.flip else np.ones_like(mirror)
    zero = np.zeros_like(width)
    rows = np.stack([width * sign, zero, centre_x, zero, height, centre_y], axis=1)
    return torch.from_numpy(rows.reshape(-1, 2, 3)).float()


def view(images_B3SS: Tensor, theta_B23: Tensor, size: int) -> Tensor:
    """The crops `theta_B23` at `size` pixels a side, [B, 3, H, H]."""
    where = F.affine_grid(theta_B23, [len(images_B3SS), 3, size, size], align_corners=False)
    return F.grid_sample(images_B3SS, where, padding_mode="border", align_corners=False)


def as_floats(pixels_BSS3: NDArray[np.uint8]) -> Tensor:
    """Pixels as float [B, 3, S, S] in 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels_BSS3)).permute(0, 3, 1, 2).float() / 255


def normalise(images: Tensor, mean_std: Sequence[Sequence[float]]) -> Tensor:
    """Subtract the channels' means and divide by their deviations; channels third from last."""
    mean, std = torch.tensor(mean_std).view(2, 3, 1, 1)
    normalised: Tensor = (images - mean) / std
    return normalised
