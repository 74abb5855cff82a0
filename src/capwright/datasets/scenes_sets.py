"""The scenes of `capwright scenes` as sets: classes, depths, objects with masks, surface normals.

Reads a folder of WebDataset tars whose samples carry `seg.png`, `depth.npy` (metres) and
`boxes.json`, with `classes.json` beside them (or a work folder that has indexed one). Pictures keep
their stored size; `labelled.load_dense` brings all to one size in memory instead.

What is not stored follows from how scenes are made. A thing is flat, faces the camera and has one
depth, so its mask is the pixels of its class and depth within its box. The ground is level and the
backdrop upright, so a normal is (0, -1, 0) on the ground and (0, 0, -1) everywhere else, with
x right, y down, z away from the camera; ground is background nearer than the backdrop.

Shapes: H and W as stored, N things of a scene.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import PictureError, open_picture
from capwright.corpus.places import ByteReader, Place, places
from capwright.datasets.labelled import MEMBERS, class_names, scene_index
from capwright.datasets.sets import (
    IGNORE,
    DepthItem,
    DepthSet,
    DetectionItem,
    DetectionSet,
    NormalsItem,
    NormalsSet,
    SegmentationItem,
    SegmentationSet,
)

SPLITS = ("all",)
MOST_M = 80.0  # farther is not scored
_SAME_DEPTH = 1e-3  # relative: depths are stored with 11 bits


@dataclass(frozen=True, kw_only=True)
class _Scenes:
    """Where the members of every scene lie."""

    keys: tuple[str, ...]
    images: tuple[Place, ...]
    members: tuple[Mapping[str, tuple[int, int]], ...]  # offset and size by suffix
    classes: tuple[str, ...]
    reader: ByteReader = field(default_factory=ByteReader)

    def image(self, index: int) -> Image.Image:
        try:
            return open_picture(self.reader.read(*self.images[index]))
        except PictureError as error:
            raise CapwrightError(f"scene {self.keys[index]!r}: {error}; make it again") from None

    def member(self, index: int, suffix: str) -> bytes:
        offset, size = self.members[index][suffix]
        return self.reader.read(self.images[index].file, offset, size)

    def seg(self, index: int) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(self.member(index, "seg.png"))) as picture:
            seg_HW = np.array(picture)
        wrong = seg_HW[(seg_HW >= len(self.classes)) & (seg_HW != IGNORE)]
        if seg_HW.dtype != np.uint8 or wrong.size:
            raise CapwrightError(
                f"scene {self.keys[index]!r} has the label {int(seg_HW.max())}, but classes.json "
                f"allows 0 to {len(self.classes) - 1} and {IGNORE}: use the classes.json that was "
                "written with these scenes"
            )
        return seg_HW

    def depth(self, index: int) -> NDArray[np.float32]:
        stored = np.load(io.BytesIO(self.member(index, "depth.npy")), allow_pickle=False)
        depth_HW: NDArray[np.float32] = stored.astype(np.float32)
        depth_HW[~np.isfinite(depth_HW)] = 0
        return depth_HW


def _scenes(folder: Path) -> _Scenes:
    index = scene_index(folder)
    if index.num_rows == 0:
        raise CapwrightError(f"{folder} has no scenes: run `capwright scenes` first")
    keys = tuple(index["key"].to_pylist())
    members = tuple(
        {member["suffix"]: (member["offset"], member["size"]) for member in row}
        for row in index["members"].to_pylist()
    )
    for key, found in zip(keys, members, strict=True):
        missing = [suffix for suffix in MEMBERS if suffix not in found]
        if missing:
            raise CapwrightError(
                f"sample {key!r} of {folder} has no .{missing[0]}: scenes have "
                f"{', '.join('.' + suffix for suffix in MEMBERS)}, as `capwright scenes` does it"
            )
    return _Scenes(
        keys=keys, images=tuple(places(index)), members=members, classes=class_names(index)
    )


def load(folder: Path, split: str = "all") -> SegmentationSet:
    """Classes at every pixel; the background is class 0."""
    scenes = _scenes(folder)
    return SegmentationSet(
        name="scenes",
        keys=scenes.keys,
        read=_Segmentation(scenes),
        classes=scenes.classes,
        has_background=True,
    )


def depth(folder: Path) -> DepthSet:
    """Metres at every pixel."""
    scenes = _scenes(folder)
    return DepthSet(
        name="scenes", keys=scenes.keys, read=_Depth(scenes), least_m=1e-3, most_m=MOST_M
    )


def normals(folder: Path) -> NormalsSet:
    """Surface normals, from how scenes are made."""
    scenes = _scenes(folder)
    return NormalsSet(name="scenes", keys=scenes.keys, read=_Normals(scenes))


def detection(folder: Path) -> DetectionSet:
    """Things with boxes and masks; `annotations` in COCO's form, masks as plain run lengths."""
    scenes = _scenes(folder)
    read = _Detection(scenes)
    classes = scenes.classes[1:]
    ids = tuple(range(1, len(classes) + 1))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(len(scenes.keys)):
        item_things, (height, width) = read.things(number)
        images.append(
            {"id": number, "file_name": scenes.keys[number], "height": height, "width": width}
        )
        for label, box, mask_HW in item_things:
            x0, y0, x1, y1 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask_HW.sum()),
                    "iscrowd": 0,
                    "segmentation": run_lengths(mask_HW),
                }
            )
    names = [{"id": i, "name": name} for i, name in zip(ids, classes, strict=True)]
    return DetectionSet(
        name="scenes",
        keys=scenes.keys,
        read=read,
        classes=classes,
        category_ids=ids,
        annotations={"images": images, "annotations": annotations, "categories": names},
    )


def check(folder: Path, split: str | None = None) -> list[str]:
    """Problems of the scenes, first of each kind."""
    try:
        scenes = _scenes(folder)
        for number in range(len(scenes.keys)):
            size = scenes.image(number).size[::-1]
            shapes = scenes.seg(number).shape, scenes.depth(number).shape
            if shapes != (size, size):
                return [
                    f"scene {scenes.keys[number]!r} is {size} (height, width), but its classes are "
                    f"{shapes[0]} and its depths {shapes[1]}: make the scenes again"
                ]
    except (CapwrightError, OSError, ValueError) as error:
        return [str(error)]
    return []


@dataclass(frozen=True)
class _Segmentation:
    scenes: _Scenes

    def __call__(self, index: int) -> SegmentationItem:
        scenes = self.scenes
        return SegmentationItem(
            key=scenes.keys[index], image=scenes.image(index), seg_HW=scenes.seg(index)
        )


@dataclass(frozen=True)
class _Depth:
    scenes: _Scenes

    def __call__(self, index: int) -> DepthItem:
        scenes = self.scenes
        return DepthItem(
            key=scenes.keys[index], image=scenes.image(index), depth_HW=scenes.depth(index)
        )


@dataclass(frozen=True)
class _Normals:
    scenes: _Scenes

    def __call__(self, index: int) -> NormalsItem:
        scenes = self.scenes
        normals_3HW = scene_normals(scenes.seg(index), scenes.depth(index))
        return NormalsItem(
            key=scenes.keys[index], image=scenes.image(index), normals_3HW=normals_3HW
        )


def scene_normals(seg_HW: NDArray[np.uint8], depth_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors [3, H, W]; 0 where class or depth is unknown."""
    normals_3HW = np.zeros((3, *seg_HW.shape), np.float32)
    known_HW = (seg_HW != IGNORE) & (depth_HW > 0)
    background_HW = known_HW & (seg_HW == 0)
    farthest = depth_HW[background_HW].max(initial=0.0)
    ground_HW = background_HW & (depth_HW < farthest * (1 - _SAME_DEPTH))
    normals_3HW[1, ground_HW] = -1
    normals_3HW[2, known_HW & ~ground_HW] = -1
    return normals_3HW


Thing = tuple[int, tuple[float, float, float, float], NDArray[np.bool_]]  # label, box, mask


@dataclass(frozen=True)
class _Detection:
    scenes: _Scenes

    def things(self, index: int) -> tuple[list[Thing], tuple[int, int]]:
        """The things of a scene, and its height and width."""
        scenes = self.scenes
        seg_HW, depth_HW = scenes.seg(index), scenes.depth(index)
        found: list[Thing] = []
        for box in json.loads(scenes.member(index, "boxes.json")):
            label = self._label(box, index)
            mask_HW = thing_mask(seg_HW, depth_HW, label + 1, box["box"], box["depth_m"])
            x0, y0, x1, y1 = (float(value) for value in box["box"])
            found.append((label, (x0, y0, x1, y1), mask_HW))
        height, width = seg_HW.shape
        return found, (height, width)

    def _label(self, box: Mapping[str, Any], index: int) -> int:
        try:
            return self.scenes.classes[1:].index(box["class"])
        except ValueError:
            raise CapwrightError(
                f"scene {self.scenes.keys[index]!r} has a thing of the class {box['class']!r}, "
                "which classes.json lacks: use the classes.json that was written with these scenes"
            ) from None

    def __call__(self, index: int) -> DetectionItem:
        things, (height, width) = self.things(index)
        masks = [mask_HW for _, _, mask_HW in things]
        return DetectionItem(
            key=self.scenes.keys[index],
            image=self.scenes.image(index),
            image_id=index,
            boxes_N4=np.array([box for _, box, _ in things], np.float32).reshape(-1, 4),
            labels_N=np.array([label for label, _, _ in things], np.int64),
            masks_NHW=np.array(masks, np.bool_).reshape(-1, height, width),
            crowd_N=np.zeros(len(things), np.bool_),
        )


def thing_mask(
    seg_HW: NDArray[np.uint8], depth_HW: NDArray[np.float32], number: int, box: Any, depth_m: float
) -> NDArray[np.bool_]:
    """Pixels of the class `number` at `depth_m` within the box; of any depth where none fits."""
    x0, y0, x1, y1 = (round(value) for value in box)
    mask_HW = np.zeros(seg_HW.shape, np.bool_)
    mask_HW[y0:y1, x0:x1] = seg_HW[y0:y1, x0:x1] == number
    near_HW = np.abs(depth_HW - depth_m) <= _SAME_DEPTH * depth_m + 1e-4
    return mask_HW & near_HW if (mask_HW & near_HW).any() else mask_HW


def run_lengths(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's plain run lengths: column by column, the first run is of pixels outside."""
    pixels = mask_HW.T.ravel()
    changes = np.flatnonzero(np.diff(pixels)) + 1
    bounds = np.concatenate([[0], changes, [pixels.size]])
    counts = np.diff(bounds).tolist()
    return {"size": list(mask_HW.shape), "counts": [0, *counts] if pixels[0] else counts}
