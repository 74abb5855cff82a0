"""Views of a labelled picture: at random to learn from, whole to test on.

Learning, as MaskFormer does it: the short side to a random size, mirrored with probability 1/2, a
square cut at random. Where the picture is smaller than the cut, grey is added at the right and at
the bottom, unlabelled. Labels take the nearest pixel.

Shapes: H and W pixels, S side of the cut.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import IGNORE

MIRRORED, GREY = 0.5, 0.5


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Sizes in pixels; the defaults are the paper's for COCO-Stuff."""

    short_sides: tuple[int, int] = (320, 960)  # least and most, while learning
    cut: int = 640  # while learning
    test_short_side: int = 640

    def __post_init__(self) -> None:
        least, most = self.short_sides
        if not 1 <= least <= most or self.cut < 1 or self.test_short_side < 1:
            raise CapwrightError(
                f"short sides of {least} to {most}, a cut of {self.cut} and a test side of "
                f"{self.test_short_side} pixels: all must be positive, the least first"
            )


def learning_view(
    image: Image.Image, seg_HW: NDArray[np.uint8], views: ViewSettings, draws: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(pixels 0 to 1 [3, S, S], labels [S, S])."""
    least, most = views.short_sides
    pixels_3HW, labels_HW = at_short_side(image, seg_HW, int(draws.integers(least, most + 1)))
    if draws.random() < MIRRORED:
        pixels_3HW, labels_HW = pixels_3HW.flip(-1), labels_HW.flip(-1)
    height, width = labels_HW.shape
    top, left = (int(draws.integers(max(1, side - views.cut + 1))) for side in (height, width))
    window = (slice(top, top + views.cut), slice(left, left + views.cut))
    pixels_3HW, labels_HW = pixels_3HW[:, *window], labels_HW[window]
    missing = (0, views.cut - labels_HW.shape[1], 0, views.cut - labels_HW.shape[0])
    return F.pad(pixels_3HW, missing, value=GREY), F.pad(labels_HW, missing, value=IGNORE)


def at_short_side(
    image: Image.Image, seg_HW: NDArray[np.uint8], short_side: int
) -> tuple[Tensor, Tensor]:
    """(pixels 0 to 1 [3, H, W], labels [H, W]) with this shorter side."""
    small = transforms.resize(image.convert("RGB"), [short_side], antialias=True)
    pixels_3HW = transforms.pil_to_tensor(small).float() / 255
    labels_11HW = torch.from_numpy(np.ascontiguousarray(seg_HW))[None, None]
    size = pixels_3HW.shape[-2:]
    return pixels_3HW, F.interpolate(labels_11HW, size=size, mode="nearest-exact")[0, 0]
