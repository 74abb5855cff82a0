"""Values at every pixel, such as metres or normals: learning them, and reading them off a test set.

At the test a picture may be seen twice, as it is and mirrored (`flip`), and through square windows
along its longer side (`shifts`), as GLPDepth's and later code does on KITTI; what they say of a
pixel is averaged. Pictures of one size go through the model together.

Shapes: B pictures, C channels, H and W of the frame, h and w as the encoder sees it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.core.reading import in_batches, in_order
from capwright.datasets.sets import LabelledSet
from capwright.dense.pixel_model import PixelModel
from capwright.dense.sliding import slide
from capwright.evaluate.transfer.pixel_views import ViewSettings, learning_view, whole_view
from capwright.pretrain.precision import Precision, arithmetic

LOOKED_AT = 20  # items of a training set, evenly spread, of which one must have a known pixel


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What is known at a pixel, and how an answer is judged while learning."""

    name: str
    label: Callable[[Any], NDArray[np.float32]]  # item -> [C, H, W], 0 where unknown
    loss: Callable[[Tensor, Tensor], Tensor]  # (answers, labels [B, C, H, W]) -> scalar
    mirror: tuple[float, ...] = (1.0,)  # factor of each channel in a mirrored picture
    most: float = 1.0  # what CutDepth draws as white


@dataclass(frozen=True, kw_only=True)
class ReadOut:
    """How a test picture is seen."""

    flip: bool = True
    shifts: int = 0  # square windows along the longer side; 0: the whole picture at once
    batch: int = 8
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.shifts < 0 or self.shifts == 1 or self.batch < 1:
            raise CapwrightError(
                f"{self.shifts} shifted windows in batches of {self.batch}: allowed are 0 (the "
                "whole picture) or 2 and more windows, and batches of 1 and more"
            )


@dataclass(frozen=True, kw_only=True)
class PixelView:
    """An item to (pixels 0 to 1 [3, H, W], label [C, H, W]); runs in the workers that read."""

    label: Callable[[Any], NDArray[np.float32]]
    settings: ViewSettings
    mirror: tuple[float, ...]
    most: float

    def __call__(self, item: Any, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A view, by the draws."""
        return learning_view(
            item.image, self.label(item), self.settings, self.mirror, draws, self.most
        )


class PixelLearner:
    """What the training loop needs (loop.Learner), with the view of an item."""

    def __init__(self, model: PixelModel, quantity: Quantity, views: ViewSettings) -> None:
        self.module, self.quantity = model, quantity
        self.view = PixelView(
            label=quantity.label, settings=views, mirror=quantity.mirror, most=quantity.most
        )

    def loss(self, items: Sequence[tuple[Tensor, Tensor]], draws: np.random.Generator) -> Tensor:
        """Scalar loss of what `view` made of each item."""
        sizes = {tuple(label.shape[1:]) for _, label in items}
        if len(sizes) > 1:
            raise CapwrightError(
                f"pictures of {len(sizes)} sizes cannot be learned together: set the size of the "
                "cut, views.cut=[HEIGHT, WIDTH]"
            )
        device = next(self.module.parameters()).device
        pixels_B3HW, labels_BCHW = (
            torch.stack(part).to(device) for part in zip(*items, strict=True)
        )
        answers_BCHW = self.module(self.module.backbone.normalised(pixels_B3HW))
        return self.quantity.loss(answers_BCHW.float(), labels_BCHW)


def answers(
    model: PixelModel,
    pictures: LabelledSet[Any],
    numbers: Sequence[int],
    quantity: Quantity,
    views: ViewSettings,
    settings: ReadOut,
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """(key, answer [C, H, W], truth [C, H, W]) of every picture, in order."""
    model.eval()

    def prepared(number: int) -> tuple[str, Tensor, Tensor]:
        item = pictures[number]
        return item.key, *whole_view(item.image, quantity.label(item), views)

    with Progress(f"test, {quantity.name}", len(numbers), "pictures") as progress:
        read = in_order(prepared, numbers, ahead=2 * settings.batch)
        for batch in in_batches(read, settings.batch, lambda one: (one[1].shape, one[2].shape)):
            yield from _answered(model, batch, quantity, settings)
            progress.advance(len(batch))


def _answered(
    model: PixelModel,
    batch: Sequence[tuple[str, Tensor, Tensor]],
    quantity: Quantity,
    settings: ReadOut,
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    keys, pixels, truths = zip(*batch, strict=True)
    device = next(model.parameters()).device
    images_B3hw = model.backbone.normalised(torch.stack(pixels).to(device))
    with torch.no_grad(), arithmetic(settings.precision, device):
        out_BCHW = seen(model, images_B3hw, quantity.mirror, settings).float()
    size = truths[0].shape[1:]
    if out_BCHW.shape[2:] != size:
        out_BCHW = F.interpolate(out_BCHW, size=size, mode="bilinear", align_corners=False)
    yield from zip(keys, out_BCHW.cpu().numpy(), [t.numpy() for t in truths], strict=True)


def seen(
    model: Callable[[Tensor], Tensor],
    images_B3hw: Tensor,
    mirror: Sequence[float],
    settings: ReadOut,
) -> Tensor:
    """Answers [B, C, h, w], averaged over the windows and over both directions."""

    def both(images: Tensor) -> Tensor:
        out = model(images)
        if not settings.flip:
            return out
        turned = model(images.flip(-1)).flip(-1) * out.new_tensor(mirror)[:, None, None]
        return (out + turned) / 2

    short, long = sorted(images_B3hw.shape[-2:])
    if not settings.shifts or short == long:
        return both(images_B3hw)
    if settings.shifts * short < long:
        raise CapwrightError(
            f"{settings.shifts} square windows do not cover a picture of {short} × {long} pixels: "
            f"set shifts to {math.ceil(long / short)} or more, or to 0"
        )
    stride = math.ceil((long - short) / (settings.shifts - 1))
    return slide(both, images_B3hw, window=short, stride=stride, batch=settings.batch)


def require_known(pictures: LabelledSet[Any], numbers: Sequence[int], quantity: Quantity) -> None:
    """Raise CapwrightError where none of the items that are looked at has a known pixel."""
    looked = numbers[:: max(1, len(numbers) // LOOKED_AT)]
    if not any(quantity.label(pictures[number]).any() for number in looked):
        raise CapwrightError(
            f"none of {len(looked)} pictures of {pictures.name} that were looked at has any known "
            f"{quantity.name}: check the folder with `capwright data check`"
        )
