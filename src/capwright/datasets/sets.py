"""What a labelled data set gives: map-style sets of one kind, whose items are read when asked for.

A set holds the keys of its items and a reader, never the pictures, so memory does not grow with its
size; the reader pickles, so that worker processes can hold the set. Pictures are RGB.

Shapes: H and W of the stored picture, N objects.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
class DepthSet(LabelledSet[DepthItem]):
    """Pictures with a distance at every pixel, and the range in which it is scored."""

    least_m: float
    most_m: float
    crops: tuple[str, ...] = ("none",)  # the usual one first


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
