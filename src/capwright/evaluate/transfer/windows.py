"""A part of a resized picture, cut out of the stored one: only the part's pixels are computed.

Shapes: H and W as stored, h and w of the part.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scaled(image: Image.Image, scale: float) -> tuple[int, int]:
    """Height and width of a picture that is resized by a factor, at least a pixel each."""
    return max(1, round(image.height * scale)), max(1, round(image.width * scale))


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where the part lies in the whole; it does not reach over its edges."""

    whole: tuple[int, int]  # height and width of the resized picture
    top: int = 0
    left: int = 0
    height: int
    width: int

    def scales(self, stored: tuple[int, int]) -> tuple[float, float]:
        """Resized pixels a stored one, down and across, of a picture stored with [H, W]."""
        return self.whole[0] / stored[0], self.whole[1] / stored[1]

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Pixels [h, w, 3] of an RGB picture (bilinear, antialiased)."""
        down, across = self.scales((image.height, image.width))
        box = (
            self.left / across,
            self.top / down,
            min(image.width, (self.left + self.width) / across),
            min(image.height, (self.top + self.height) / down),
        )
        part = image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(part)

    def nearest(self, stored: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows [h] and columns [w] of a map stored with [H, W] that the part's pixels show."""
        down, across = self.scales(stored)
        rows = (np.arange(self.top, self.top + self.height) + 0.5) / down
        columns = (np.arange(self.left, self.left + self.width) + 0.5) / across
        last_row, last_column = stored[0] - 1, stored[1] - 1
        return (
            np.minimum(rows, last_row).astype(np.intp),
            np.minimum(columns, last_column).astype(np.intp),
        )
