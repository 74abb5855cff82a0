"""Views of a picture and of what is known at its pixels (depths, normals), to learn from and to
test on.

Learning: the frame, the size, a random cut, a mirroring with probability 1/2, changes of colour and
CutDepth (Ishii and Yamashita, arXiv 2107.07684): a vertical strip of the picture is replaced by its
own depths, as GLPDepth does (arXiv 2201.07436, section 3.3). Nothing is enlarged at random: what is
enlarged looks nearer while its metres stay. Ranges of colours are defaults of ours.

Labels are 0 where unknown, and go to another size by their nearest pixel.

Shapes: C channels of the label, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from capwright.core.errors import CapwrightError

MIRRORED = 0.5
GAMMA, BRIGHTNESS, CHANNEL = (0.9, 1.1), (0.8, 1.2), (0.9, 1.1)
STRIP = 0.75  # largest share of what lies right of its left edge that a strip covers


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """What is done to pictures; sides are (height, width)."""

    frame: tuple[int, int] | None = None  # cut at the bottom centre, before all else; KITTI's
    short_side: int = 0  # pictures are resized to it; 0: as stored
    cut: tuple[int, int] | None = None  # at random, while learning; None: the whole picture
    colours: float = 0.5  # probability of each of three changes, while learning
    strip: float = 0.0  # probability of CutDepth, while learning


def learning_view(
    image: Image.Image,
    label_CHW: NDArray[np.float32],
    settings: ViewSettings,
    mirror: Sequence[float],
    draws: np.random.Generator,
    most: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(pixels 0 to 1 [3, H, W], label [C, H, W]).

    `mirror` is what each channel is multiplied with in a mirrored picture, `most` the depth that
    CutDepth draws as white. Raises CapwrightError where the picture is smaller than the cut.
    """
    pixels_3HW, label = whole_view(image, label_CHW, settings, resize_label=True)
    pixels_3HW = pixels_3HW.float() / 255
    if settings.cut is not None:
        (height, width), (tall, wide) = settings.cut, pixels_3HW.shape[1:]
        if tall < height or wide < width:
            raise CapwrightError(
                f"a cut of {height} × {width} pixels does not fit into a picture of {tall} × "
                f"{wide} (height × width): take a smaller cut, or a larger short_side"
            )
        top, left = draws.integers(tall - height + 1), draws.integers(wide - width + 1)
        window = (..., slice(top, top + height), slice(left, left + width))
        pixels_3HW, label = pixels_3HW[window], label[window]
    if draws.random() < MIRRORED:
        pixels_3HW = pixels_3HW.flip(-1)
        label = label.flip(-1) * label.new_tensor(mirror)[:, None, None]
    pixels_3HW = recoloured(pixels_3HW, settings.colours, draws)
    if draws.random() < settings.strip:
        pixels_3HW = cut_depth(pixels_3HW, label / most, draws)
    return pixels_3HW.contiguous(), label.contiguous()


def whole_view(
    image: Image.Image,
    label_CHW: NDArray[np.float32],
    settings: ViewSettings,
    *,
    resize_label: bool = False,
) -> tuple[Tensor, Tensor]:
    """(pixels uint8 [3, h, w] at the size for the encoder, label [C, H, W] of the frame)."""
    if settings.frame is not None:
        image, label_CHW = _framed(image, label_CHW, settings.frame)
    label = torch.from_numpy(np.ascontiguousarray(label_CHW))
    if settings.short_side:
        image = transforms.resize(image, [settings.short_side], antialias=True)
        if resize_label:
            size = (image.height, image.width)
            label = F.interpolate(label[None], size=size, mode="nearest-exact")[0]
    return transforms.pil_to_tensor(image.convert("RGB")), label


def recoloured(pixels_3HW: Tensor, probability: float, draws: np.random.Generator) -> Tensor:
    """Gamma, brightness and the strength of each channel, each with its probability."""
    chances = draws.random(3) < probability
    gamma, brightness = draws.uniform(*GAMMA), draws.uniform(*BRIGHTNESS)
    channels = draws.uniform(*CHANNEL, size=3)
    if chances[0]:
        pixels_3HW = pixels_3HW**gamma
    if chances[1]:
        pixels_3HW = pixels_3HW * brightness
    if chances[2]:
        pixels_3HW = pixels_3HW * pixels_3HW.new_tensor(channels)[:, None, None]
    return pixels_3HW.clamp(0, 1)


def cut_depth(pixels_3HW: Tensor, share_1HW: Tensor, draws: np.random.Generator) -> Tensor:
    """A vertical strip of the picture replaced by its depths, 0 to 1, in all three channels."""
    width = pixels_3HW.shape[-1]
    left = int(draws.random() * width)
    wide = max(1, int((width - left) * draws.random() * STRIP))
    replaced = pixels_3HW.clone()
    replaced[..., left : left + wide] = share_1HW[..., left : left + wide].clamp(0, 1)
    return replaced


def _framed(
    image: Image.Image, label_CHW: NDArray[np.float32], frame: tuple[int, int]
) -> tuple[Image.Image, NDArray[np.float32]]:
    height, width = frame
    top, left = image.height - height, (image.width - width) // 2
    if top < 0 or left < 0:
        raise CapwrightError(
            f"a frame of {height} × {width} pixels does not fit into a picture of {image.height} × "
            f"{image.width} (height × width): set a smaller frame, or none"
        )
    box = (left, top, left + width, top + height)
    return image.crop(box), label_CHW[:, top : top + height, left : left + width]
