"""Views of pictures with objects: another size, a cut, mirrored; boxes and masks go along.

Two ways to a size while learning. The usual one: the shorter side is brought to one of
`short_sides`, drawn for each picture, as long as the longer one is at most `long_side`. Large-scale
jitter (Ghiasi et al., arXiv 2012.07177): the picture is scaled by a factor drawn from `jitter`,
where 1 lets it just fit into a square of `canvas` pixels, and a window of at most that square is
cut out at random. Test pictures always take the usual way, with the last of `short_sides`.

Regions of many objects (crowds) are not learned; an object of which a cut leaves no pixel is left
out, and one that it cuts through gets the box of what is left.

Shapes: N objects, H and W of the view, h and w as stored.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import DetectionItem
from capwright.evaluate.transfer.windows import Window, scaled

MIRRORED = 0.5

View = tuple[Tensor, dict[str, Tensor]]  # pixels uint8 [3, H, W]; boxes, labels from 1, masks


@dataclass(frozen=True, kw_only=True)
class DetectionViews:
    """How large pictures are seen, in pixels."""

    short_sides: tuple[int, ...] = (800,)
    long_side: int = 1333
    jitter: tuple[float, float] | None = None  # such as (0.1, 2.0); None: the usual way
    canvas: int = 1024  # of the jitter
    mirror: bool = True

    def __post_init__(self) -> None:
        if not self.short_sides or min(*self.short_sides, self.canvas) < 1:
            raise CapwrightError(
                f"short_sides={self.short_sides}, canvas={self.canvas}: give at least one shorter "
                "side, all of at least 1 pixel"
            )
        if self.long_side < max(self.short_sides):
            raise CapwrightError(
                f"long_side={self.long_side} is below the shorter side {max(self.short_sides)}: "
                "raise it"
            )
        if self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1]:
            raise CapwrightError(f"jitter {self.jitter}: two factors above 0, the lower one first")


@dataclass(frozen=True, kw_only=True)
class LearningView:
    """An item to what the model learns from; runs in the workers that read."""

    settings: DetectionViews
    classes: int

    def __call__(self, item: DetectionItem, draws: Generator) -> View:
        """A view, by the draws. Raises CapwrightError for a label that is no class."""
        check_labels(item, self.classes)
        settings, image = self.settings, item.image.convert("RGB")
        size = _drawn_size(image, settings, draws)
        high, wide = size
        if settings.jitter is not None:
            high, wide = (min(side, settings.canvas) for side in size)
        top = int(draws.integers(size[0] - high + 1))
        left = int(draws.integers(size[1] - wide + 1))
        mirrored = settings.mirror and draws.random() < MIRRORED
        window = Window(whole=size, top=top, left=left, height=high, width=wide)
        return _pixels(window, image, mirrored=mirrored), _target(window, item, mirrored)


def size_at_test(image: Image.Image, settings: DetectionViews) -> tuple[int, int]:
    """(height, width) at which a test picture is seen."""
    return _fitting(image, settings.short_sides[-1], settings.long_side)


def resized(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Pixels uint8 [3, H, W] of the whole picture at another size (bilinear, antialiased)."""
    return _pixels(Window(whole=size, height=size[0], width=size[1]), image.convert("RGB"))


def check_labels(item: DetectionItem, classes: int) -> None:
    """Raise CapwrightError for a label that is no class."""
    wrong = item.labels_N[(item.labels_N < 0) | (item.labels_N >= classes)]
    if len(wrong):
        raise CapwrightError(
            f"picture {item.key!r} has an object of the class {int(wrong[0])}, but there are "
            f"{classes} classes, from 0: correct its labels, or the list of classes"
        )


def _drawn_size(image: Image.Image, settings: DetectionViews, draws: Generator) -> tuple[int, int]:
    if settings.jitter is None:
        short = settings.short_sides[int(draws.integers(len(settings.short_sides)))]
        return _fitting(image, short, settings.long_side)
    scale = draws.uniform(*settings.jitter) * settings.canvas / max(image.size)
    return scaled(image, scale)


def _fitting(image: Image.Image, short: int, long: int) -> tuple[int, int]:
    return scaled(image, min(short / min(image.size), long / max(image.size)))


def _pixels(window: Window, image: Image.Image, *, mirrored: bool = False) -> Tensor:
    pixels_HW3 = window.pixels(image)[:, :: -1 if mirrored else 1]
    return torch.from_numpy(np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1)))


def _target(window: Window, item: DetectionItem, mirrored: bool) -> dict[str, Tensor]:
    kept = np.flatnonzero(~item.crowd_N)
    stored = (item.image.height, item.image.width)
    down, across = window.scales(stored)
    masks_NHW = torch.from_numpy(item.masks_NHW[np.ix_(kept, *window.nearest(stored))])
    stored_N4 = torch.from_numpy(item.boxes_N4[kept])
    boxes_N4 = stored_N4 * stored_N4.new_tensor([across, down, across, down])
    boxes_N4 -= boxes_N4.new_tensor([window.left, window.top, window.left, window.top])
    boxes_N4 = _within(boxes_N4, masks_NHW)
    if mirrored:
        masks_NHW = masks_NHW.flip(-1)
        boxes_N4 = boxes_N4[:, [2, 1, 0, 3]] * boxes_N4.new_tensor([-1, 1, -1, 1])
        boxes_N4 += boxes_N4.new_tensor([window.width, 0, window.width, 0])
    left = masks_NHW.flatten(1).any(dim=1) & (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(dim=1)
    labels_N = torch.from_numpy(item.labels_N[kept]) + 1  # 0 is the background
    return {
        "boxes": boxes_N4[left],
        "labels": labels_N[left],
        "masks": masks_NHW[left].to(torch.uint8),
    }


def _within(boxes_N4: Tensor, masks_NHW: Tensor) -> Tensor:
    """Boxes as they are where they lie in the window, else those of the masks that are left."""
    height, width = masks_NHW.shape[1:]
    inside_N4 = boxes_N4.clamp(min=0)
    inside_N4 = torch.minimum(inside_N4, boxes_N4.new_tensor([width, height, width, height]))
    cut_N = (boxes_N4 - inside_N4).abs().amax(dim=1) > 1  # COCO's own boxes are a little off
    cut_N &= masks_NHW.flatten(1).any(dim=1)
    if cut_N.any():
        ends = boxes_N4.new_tensor([0, 0, 1, 1])
        inside_N4[cut_N] = masks_to_boxes(masks_NHW[cut_N]).to(boxes_N4) + ends
    return inside_N4
