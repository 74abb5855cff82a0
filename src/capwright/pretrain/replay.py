"""Augmentations that are stored as parameters and replayed exactly, in DataCompDR's form.

An augmentation is `[[top, left, height, width], [[operation, magnitude], ...]]` in JSON: a crop in
pixels of the picture as it lies in the corpus, and RandAugment's operations (Cubuk et al., arXiv
1909.13719) by their number in `OPERATIONS`. It is how MobileCLIP (Vasu et al., arXiv 2311.17049)
stores tens of views of a picture in a few bytes each. Replaying cuts the crop out, resizes it
(bicubic) to the side that a model wants, and applies the operations there. Teachers and student
call the same function, so at the same side they see the same bytes.

A translation is in pixels of a picture of `REFERENCE_SIDE`; at another side it is scaled, so that a
teacher of 224 and a student of 256 pixels see the same part. (The published code moves by the same
number of pixels at any side. At 224 both are the same.)

Shapes: H side of the view.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as ops

REFERENCE_SIDE = 224
CROP_TRIES = 10

Operate = Callable[[Image.Image, float], Image.Image]


class ReplayError(Exception):
    """Parameters that cannot be replayed; the message is a short reason to count."""


class Augmentation(NamedTuple):
    """A crop, and operations (number, magnitude) that follow it."""

    top: int
    left: int
    height: int
    width: int
    operations: tuple[tuple[int, float], ...] = ()

    def stored(self) -> list[Any]:
        """DataCompDR's form."""
        return [[self.top, self.left, self.height, self.width], [list(o) for o in self.operations]]


def parse(text: str) -> list[Augmentation]:
    """The augmentations of a picture from JSON; raises ReplayError for another form."""
    try:
        return [_augmentation(one) for one in json.loads(text)]
    except (ValueError, TypeError, KeyError) as error:
        raise ReplayError("augmentation parameters in another form than DataCompDR's") from error


def dump(augmentations: Sequence[Augmentation]) -> str:
    """The augmentations of a picture as JSON; `parse` gives them back exactly."""
    return json.dumps([one.stored() for one in augmentations], separators=(",", ":"))


def check_inside(augmentations: Sequence[Augmentation], width: int, height: int) -> None:
    """Raise ReplayError where a crop reaches out of a picture of this size."""
    for one in augmentations:
        inside = one.top >= 0 and one.left >= 0 and one.height > 0 and one.width > 0
        if not inside or one.top + one.height > height or one.left + one.width > width:
            raise ReplayError("a stored crop lies outside the picture, which has another size here")


def replay(picture: Image.Image, augmentation: Augmentation, size: int) -> NDArray[np.uint8]:
    """The view of an RGB picture, uint8 [H, H, 3]; raises ReplayError for a crop outside it."""
    check_inside([augmentation], *picture.size)
    top, left, height, width, operations = augmentation
    crop = picture.crop((left, top, left + width, top + height))
    view = crop.resize((size, size), Image.Resampling.BICUBIC)
    for number, magnitude in operations:
        view = OPERATIONS[number][1](view, magnitude)
    return np.asarray(view)


def draw(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    crop_area: tuple[float, float],
    crop_aspect: tuple[float, float],
    operations: int,
    level: float,
) -> Augmentation:
    """A random resized crop of a picture of this size, and operations at `level` (0 to 1) of
    their greatest magnitude.
    """
    crop = _draw_crop(rng, width, height, crop_area, crop_aspect)
    chosen = []
    for number in rng.integers(len(OPERATIONS), size=operations).tolist():
        name = OPERATIONS[number][0]
        magnitude = _magnitude(name, level)
        if name in SIGNED and rng.random() < 0.5:
            magnitude = -magnitude
        chosen.append((number, magnitude))
    return Augmentation(*crop, tuple(chosen))


def _draw_crop(
    rng: np.random.Generator,
    width: int,
    height: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    for _ in range(CROP_TRIES):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    # a long picture has no such crop: the widest or tallest one in its middle
    w = max(1, min(width, round(height * aspect[1])))
    h = max(1, min(height, round(width / aspect[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def _augmentation(stored: Any) -> Augmentation:
    crop, operations = stored
    top, left, height, width = (int(value) for value in crop)
    chosen = []
    for number, magnitude in operations or ():
        if not 0 <= number < len(OPERATIONS) or number != int(number):
            raise ValueError(f"operation {number}")
        chosen.append((int(number), float(magnitude)))
    return Augmentation(top, left, height, width, tuple(chosen))


def _magnitude(name: str, level: float) -> float:
    """The strength of an operation at a level from 0 to 1, as RandAugment grades them."""
    if name == "Posterize":
        return float(8 - round(4 * level))  # bits that stay
    if name == "Solarize":
        return 255.0 * (1 - level)  # what is brighter is inverted
    return GREATEST.get(name, 0.0) * level


def _shift(view: Image.Image, magnitude: float) -> int:
    return int(magnitude * view.width / REFERENCE_SIDE)


def _affine(
    view: Image.Image,
    move: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
    center: Sequence[int] | None = None,
) -> Image.Image:
    moved: Image.Image = ops.affine(
        view, angle=0.0, translate=list(move), scale=1.0, shear=list(shear),
        interpolation=InterpolationMode.NEAREST, center=center,
    )  # fmt: skip
    return moved


def _degrees(magnitude: float) -> float:
    return math.degrees(math.atan(magnitude))


# in the order of DataCompDR's numbers
OPERATIONS: tuple[tuple[str, Operate], ...] = (
    ("Identity", lambda view, _: view),
    ("ShearX", lambda view, m: _affine(view, shear=(_degrees(m), 0.0), center=[0, 0])),
    ("ShearY", lambda view, m: _affine(view, shear=(0.0, _degrees(m)), center=[0, 0])),
    ("TranslateX", lambda view, m: _affine(view, move=(_shift(view, m), 0))),
    ("TranslateY", lambda view, m: _affine(view, move=(0, _shift(view, m)))),
    ("Rotate", lambda view, m: ops.rotate(view, m, interpolation=InterpolationMode.NEAREST)),
    ("Brightness", lambda view, m: ops.adjust_brightness(view, 1.0 + m)),
    ("Color", lambda view, m: ops.adjust_saturation(view, 1.0 + m)),
    ("Contrast", lambda view, m: ops.adjust_contrast(view, 1.0 + m)),
    ("Sharpness", lambda view, m: ops.adjust_sharpness(view, 1.0 + m)),
    ("Posterize", lambda view, m: ops.posterize(view, int(m))),
    ("Solarize", lambda view, m: ops.solarize(view, m)),
    ("AutoContrast", lambda view, _: ops.autocontrast(view)),
    ("Equalize", lambda view, _: ops.equalize(view)),
)
GREATEST: Mapping[str, float] = {
    "ShearX": 0.3, "ShearY": 0.3, "Rotate": 30.0,
    "TranslateX": 150 / 331 * REFERENCE_SIDE, "TranslateY": 150 / 331 * REFERENCE_SIDE,
    "Brightness": 0.9, "Color": 0.9, "Contrast": 0.9, "Sharpness": 0.9,
}  # fmt: skip
SIGNED = frozenset(GREATEST)
