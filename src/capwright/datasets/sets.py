"""What a labelled data set gives: map-style sets of one kind, whose items are read when asked for.

A set holds the keys of its items and a reader, never the pictures, so memory does not grow with its
size; the reader pickles, so that worker processes can hold the set. Pictures are RGB.

Shapes: H and W of the stored picture, N objects.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capwright.core.errors import CapwrightError

IGNORE = 255  # a pixel that is neither learned nor scored


@dataclass(frozen=True, kw_only=True)
class SegmentationItem:
    """A picture with a class at every pixel."""

    key: str
    image: Image.Image
    seg_HW: NDArray[np.uint8]  # class numbers, IGNORE = not labelled


@dataclass(frozen=True, kw_only=True)
class DepthItem:
    """A picture with a distance at every pixel."""

    key: str
    image: Image.Image
    depth_HW: NDArray[np.float32]  # metres, 0 = unknown


@dataclass(frozen=True, kw_only=True)
class NormalsItem:
    """A picture with a surface normal at every pixel: x right, y down, z away from the camera."""

    key: str
    image: Image.Image
    normals_3HW: NDArray[np.float32]  # unit vectors, 0 = unknown


@dataclass(frozen=True, kw_only=True)
class DetectionItem:
    """A picture with N objects."""

    key: str
    image: Image.Image
    image_id: int
    boxes_N4: NDArray[np.float32]  # x0, y0, x1, y1 in pixels
    labels_N: NDArray[np.int64]  # from 0, without background
    masks_NHW: NDArray[np.bool_]
    crowd_N: NDArray[np.bool_]  # one region for many objects: never scored, never a false positive


@dataclass(frozen=True, kw_only=True)
class ClassificationItem:
    """A picture of one class."""

    key: str
    image: Image.Image
    label: int


@dataclass(frozen=True, kw_only=True)
class CaptionItem:
    """A picture with its captions."""

    key: str
    image: Image.Image
    captions: tuple[str, ...]


Item = TypeVar("Item", covariant=True)


@dataclass(frozen=True, kw_only=True)
class LabelledSet(Generic[Item]):
    """Items by number; `read` turns the place of one into the item."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[int], Item]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {self.name}, which has {len(self)}")
        return self.read(index % len(self))


@dataclass(frozen=True, kw_only=True)
class SegmentationSet(LabelledSet[SegmentationItem]):
    """Pictures with a class at every pixel."""

    classes: tuple[str, ...]
    has_background: bool  # class 0 is what none of the other classes is
    ignore: int = IGNORE


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera: focal lengths and the principal point in pixels of a picture of a size.

    The corner of the first pixel is at 0, its middle at 0.5.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    height: int
    width: int

    @staticmethod
    def of_field(degrees: float, side: int) -> "Camera":
        """A camera with such a field of view across a square picture, looking at its middle."""
        focal = side / 2 / math.tan(math.radians(degrees) / 2)
        return Camera(fx=focal, fy=focal, cx=side / 2, cy=side / 2, height=side, width=side)

    def at(self, height: int, width: int) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy for the same picture at another size."""
        across, down = width / self.width, height / self.height
        return self.fx * across, self.fy * down, self.cx * across, self.cy * down


@dataclass(frozen=True, kw_only=True)
class DepthSet(LabelledSet[DepthItem]):
    """Pictures with a distance at every pixel, and the range in which it is scored."""

    least_m: float
    most_m: float
    crops: tuple[str, ...] = ("none",)  # the usual one first
    camera: Camera | None = None  # with one, normals follow from the depths


@dataclass(frozen=True, kw_only=True)
class NormalsSet(LabelledSet[NormalsItem]):
    """Pictures with a surface normal at every pixel."""


@dataclass(frozen=True, kw_only=True)
class DetectionSet(LabelledSet[DetectionItem]):
    """Pictures with boxes and masks; `annotations` is the COCO json that an AP tool reads."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # COCO id of each class
    annotations: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ClassificationSet(LabelledSet[ClassificationItem]):
    """Pictures of one class each; `templates` are the set's own prompts, {c} is the name."""

    classes: tuple[str, ...]
    templates: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()  # of every item, where they are known without reading it


@dataclass(frozen=True, kw_only=True)
class CaptionSet(LabelledSet[CaptionItem]):
    """Pictures with captions."""


Classes = SegmentationSet | DetectionSet | ClassificationSet


def require_same_classes(train: Classes, test: Classes) -> None:
    """Raise CapwrightError where two splits do not name the same classes in the same order."""
    if train.classes == test.classes:
        return
    pairs = zip(train.classes, test.classes, strict=False)
    first = next(((a, b) for a, b in pairs if a != b), None)
    where = f", first {first[0]!r} and {first[1]!r}" if first else ""
    raise CapwrightError(
        f"the training split of {train.name} has {len(train.classes)} classes and the test split "
        f"{len(test.classes)}{where}: both need the same classes in the same order"
    )
