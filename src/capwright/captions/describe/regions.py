"""Captions of regions: crops for captioners that only see whole pictures, and answers with boxes.

`CropDescriber` makes a captioner of regions out of any captioner of pictures: it cuts a grid of
overlapping windows, leaves out those with nothing in them (hardly any variation of grey) and has
the rest described. `parse_regions` reads the boxes and captions in the answer of a model that was
asked for them as JSON.

Boxes are left, top, right, bottom as fractions of the picture.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from capwright.captions.describe.protocol import Caption, Describer
from capwright.captions.describe.sampling import tidy
from capwright.core.errors import CapwrightError

Box = tuple[float, float, float, float]

SAMPLE = 64  # pixels a side at which a crop's variation is measured
BOX_KEYS = ("box", "bbox", "bbox_2d", "box_2d", "bounding_box")
CAPTION_KEYS = ("caption", "description", "label", "text", "phrase", "name")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Which windows of a picture are described as its regions."""

    grids: tuple[int, ...] = (2, 3)
    """Windows across and down, a grid after the other: (2, 3) is 4 large and 9 smaller windows."""
    overlap: float = 0.25
    """Share of a window's side that it has in common with its neighbour."""
    min_deviation: float = 8.0
    """Windows whose grey levels (0..255) deviate less than this are left out."""
    max_regions: int = 10
    """Windows that are described at most, those that deviate most."""

    def __post_init__(self) -> None:
        if not self.grids or min(self.grids) < 1:
            raise CapwrightError(
                f"crops.grids is {list(self.grids)}, but must be numbers of windows across, "
                "each at least 1: try [2, 3]"
            )
        if not 0 <= self.overlap < 1:
            raise CapwrightError(
                f"crops.overlap is {self.overlap}, but must be at least 0 and below 1: try 0.25"
            )
        if self.max_regions < 1:
            raise CapwrightError(
                f"crops.max_regions is {self.max_regions}, but must be at least 1: try 10"
            )

    def boxes(self) -> list[Box]:
        """All windows, row by row."""
        boxes: list[Box] = []
        for windows in self.grids:
            side = 1 / ((windows - 1) * (1 - self.overlap) + 1)
            starts = [number * side * (1 - self.overlap) for number in range(windows)]
            boxes += [
                (x, y, min(1.0, x + side), min(1.0, y + side)) for y in starts for x in starts
            ]
        return boxes


class CropDescriber:
    """A `Describer` of regions around one of whole pictures."""

    def __init__(self, inner: Describer, config: CropConfig) -> None:
        self.inner, self.config = inner, config

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def revision(self) -> str:
        return self.inner.revision

    @property
    def batch_size(self) -> int:
        return max(1, self.inner.batch_size // self.config.max_regions)

    @property
    def overlap(self) -> int:
        return self.inner.overlap

    def describe(self, images: Sequence[Image.Image]) -> list[list[Caption]]:
        """The captions of each picture's regions."""
        cut = [list(self._crops(image)) for image in images]
        crops = [crop for of_picture in cut for _, crop in of_picture]
        step = self.inner.batch_size
        captions = iter(
            written
            for start in range(0, len(crops), step)
            for written in self.inner.describe(crops[start : start + step])
        )
        return [
            [
                dataclasses.replace(caption, box=box)
                for box, _ in of_picture
                for caption in next(captions)
            ]
            or [Caption(text="", reason="failed: no region with detail")]
            for of_picture in cut
        ]

    def _crops(self, image: Image.Image) -> Iterator[tuple[Box, Image.Image]]:
        boxes = self.config.boxes()
        crops = [_crop(image, box) for box in boxes]
        deviations = [_deviation(crop) for crop in crops]
        ranked = sorted(range(len(boxes)), key=lambda number: -deviations[number])
        for number in sorted(ranked[: self.config.max_regions]):
            if deviations[number] >= self.config.min_deviation:
                yield boxes[number], crops[number]


def parse_regions(
    answer: str, limit: int, size: tuple[int, int] | None = None
) -> list[tuple[Box, str]]:
    """The boxes and captions in a model's answer, at most `limit`, in its order.

    Takes a JSON list of `{"box": [left, top, right, bottom], "caption": ...}`, alone, within an
    object, a code fence or prose, or cut off; the usual other names of the two fields as well.
    Coordinates are 0..1, 0..1000, or pixels of a picture of `size` (width, height) if any is above
    1000. Corners are put in order and boxes clipped; what has no area or no words is left out.
    """
    found = [(_numbers(entry), _words(entry)) for entry in _entries(answer)]
    boxes = [(numbers, words) for numbers, words in found if words]
    largest = max((max(numbers) for numbers, _ in boxes), default=0.0)
    if largest <= 1:
        across = down = 1.0
    elif largest <= 1000 or size is None:
        across = down = 1000.0
    else:
        across, down = map(float, size)
    regions: list[tuple[Box, str]] = []
    for numbers, words in boxes:
        box = _ordered(numbers, across, down)
        if box is not None and (box, words) not in regions:
            regions.append((box, words))
    return regions[:limit]


def pixel_box(box: Sequence[float], size: tuple[int, int]) -> Box | None:
    """Pixels to fractions, corners in order, clipped; None for a box without area."""
    return _ordered(box, *map(float, size))


def _crop(image: Image.Image, box: Box) -> Image.Image:
    width, height = image.size
    left, top = int(box[0] * width), int(box[1] * height)
    right, bottom = math.ceil(box[2] * width), math.ceil(box[3] * height)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _deviation(crop: Image.Image) -> float:
    reduced = crop.convert("L")
    reduced.thumbnail((SAMPLE, SAMPLE), Image.Resampling.BOX)
    return float(np.asarray(reduced).std())


def _ordered(numbers: Sequence[float], across: float, down: float) -> Box | None:
    x = sorted(min(1.0, max(0.0, value / across)) for value in numbers[::2])
    y = sorted(min(1.0, max(0.0, value / down)) for value in numbers[1::2])
    if x[0] >= x[1] or y[0] >= y[1]:
        return None
    return (round(x[0], 4), round(y[0], 4), round(x[1], 4), round(y[1], 4))


def _entries(answer: str) -> Iterator[dict[str, Any]]:
    decoder, place = json.JSONDecoder(strict=False), answer.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(answer, place)
        except (ValueError, RecursionError):  # of a list that was cut off: what it holds is whole
            end = place + 1
        else:
            yield from _with_boxes(value)
        place = answer.find("{", end)


def _with_boxes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and _numbers(value):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _with_boxes(part)


def _numbers(entry: dict[str, Any]) -> list[float]:
    value = next((entry[key] for key in BOX_KEYS if key in entry), None)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, list) for v in value):
        value = [number for corner in value for number in corner]
    if value is None:
        value = [entry.get(key) for key in ("x1", "y1", "x2", "y2")]
    if not isinstance(value, list) or len(value) != 4:
        return []
    try:
        numbers = [float(number) for number in value]
    except (TypeError, ValueError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _words(entry: dict[str, Any]) -> str:
    value = next((entry[key] for key in CAPTION_KEYS if key in entry), "")
    return tidy(value) if isinstance(value, str) else ""
