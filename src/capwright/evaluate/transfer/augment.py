"""Views of pictures with a class at every pixel, for learning.

As the field's segmentation code does it: the shorter side is brought to `short_side` times a random
scale, a square is cut out at random (again, up to ten times, while one class fills more than
`most_of_one` of it), mirrored with probability 1/2, and distorted in its colours, each change with
probability 1/2: brightness + U(-32, 32) of 255, contrast * U(0.5, 1.5) (before or after the other
two), saturation * U(0.5, 1.5), hue + U(-18, 18) of 180. What the picture does not fill is the
encoder's mean colour, and IGNORE.

Cutting and resizing are one step on the source: only the pixels of the square are computed. Labels
take their nearest pixel. Shapes: S side of the square, H and W as stored.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import IGNORE, SegmentationItem
from capwright.evaluate.transfer.windows import Window, scaled

TRIES = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18 / 180


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """What is done to pictures while learning."""

    side: int = 512  # S; the encoder sees squares
    short_side: int = 512  # before the random scale; 0: as stored
    scale: tuple[float, float] = (0.5, 2.0)
    most_of_one: float = 0.75  # share of the labelled pixels of a view
    mirror: bool = True
    colours: bool = True

    def __post_init__(self) -> None:
        low, high = self.scale
        if self.side < 1 or self.short_side < 0 or not 0 < low <= high:
            raise CapwrightError(
                f"views of side={self.side}, short_side={self.short_side}, scale={self.scale}: "
                "side is at least 1, short_side at least 0, scale two factors above 0, rising"
            )
        if not 0 < self.most_of_one <= 1:
            raise CapwrightError(
                f"most_of_one={self.most_of_one}: a share above 0 and at most 1 is allowed"
            )


@dataclass(frozen=True, kw_only=True)
class LearningView:
    """An item to (pixels uint8 [3, S, S], classes uint8 [S, S]); runs in the workers that read."""

    settings: ViewSettings
    fill: tuple[int, int, int]  # the encoder's mean colour

    def __call__(self, item: SegmentationItem, draws: Generator) -> tuple[Tensor, Tensor]:
        """A view, by the draws."""
        settings, image, seg_HW = self.settings, item.image.convert("RGB"), item.seg_HW
        scale = draws.uniform(*settings.scale)
        if settings.short_side:
            scale *= settings.short_side / min(image.size)
        for _ in range(TRIES):
            window = _window(image, scale, settings.side, draws)
            seen_hw = seg_HW[np.ix_(*window.nearest((image.height, image.width)))]
            seg_SS = filled(seen_hw, settings.side, IGNORE)
            if _largest_share(seg_SS) <= settings.most_of_one:
                break
        pixels_SS3 = filled(window.pixels(image), settings.side, self.fill)
        if settings.colours:
            pixels_SS3 = distorted(pixels_SS3, draws)
        if settings.mirror and draws.random() < 0.5:
            pixels_SS3, seg_SS = pixels_SS3[:, ::-1], seg_SS[:, ::-1]
        pixels_3SS = np.ascontiguousarray(pixels_SS3.transpose(2, 0, 1))
        return torch.from_numpy(pixels_3SS), torch.from_numpy(np.ascontiguousarray(seg_SS))


def filled(
    part_hw3: NDArray[np.uint8], side: int, fill: int | tuple[int, int, int]
) -> NDArray[np.uint8]:
    """A square [S, S, ...] that begins with the part; what the part leaves open is `fill`."""
    square_SS3 = np.empty((side, side, *part_hw3.shape[2:]), np.uint8)
    square_SS3[:] = fill
    square_SS3[: part_hw3.shape[0], : part_hw3.shape[1]] = part_hw3
    return square_SS3


def distorted(pixels_HW3: NDArray[np.uint8], draws: Generator) -> NDArray[np.uint8]:
    """Brightness, contrast, saturation and hue, each changed with probability 1/2."""
    chances = draws.random(5) < 0.5
    shift, turn = draws.uniform(-BRIGHTNESS, BRIGHTNESS), draws.uniform(-HUE, HUE)
    contrast, saturation = draws.uniform(*CONTRAST), draws.uniform(*SATURATION)
    x = pixels_HW3
    if chances[0]:
        x = _bytes(x + np.float32(shift))
    if chances[1] and chances[4]:
        x = _bytes(x * np.float32(contrast))
    if chances[2] or chances[3]:
        hsv_HW3 = np.array(Image.fromarray(x).convert("HSV"))
        if chances[2]:
            hsv_HW3[..., 1] = _bytes(hsv_HW3[..., 1] * np.float32(saturation))
        if chances[3]:  # bytes go round, as hues do
            hsv_HW3[..., 0] += np.uint8(round(turn * 256) % 256)
        planes = [Image.fromarray(plane_HW) for plane_HW in np.moveaxis(hsv_HW3, -1, 0)]
        x = np.asarray(Image.merge("HSV", planes).convert("RGB"))
    if chances[1] and not chances[4]:
        x = _bytes(x * np.float32(contrast))
    return x


def _window(image: Image.Image, scale: float, side: int, draws: Generator) -> Window:
    high, wide = scaled(image, scale)
    return Window(
        whole=(high, wide),
        top=int(draws.integers(max(high - side, 0) + 1)),
        left=int(draws.integers(max(wide - side, 0) + 1)),
        height=min(side, high),
        width=min(side, wide),
    )


def _largest_share(seg_SS: NDArray[np.uint8]) -> float:
    counts = np.bincount(seg_SS.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return float(counts.max() / max(1, counts.sum()))


def _bytes(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    return x.clip(0, 255).round().astype(np.uint8)
