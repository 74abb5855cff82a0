"""Scenes with a label and a depth at every pixel, as arrays.

Reads a folder of WebDataset tars (or a work folder that has indexed one) whose samples carry
`seg.png` (uint8 class numbers, 255 = ignore), `depth.npy` (metres) and `boxes.json`, and the
`classes.json` beside the tars. Writes nothing. Pictures, classes and depths are brought to one size
by the same geometry (shorter side to `size`, centre cut out); labels take the nearest pixel, since
a mean of two classes or of two sides of an edge is nowhere in the scene.

Shapes: N scenes, S size, H and W as stored.
"""

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.corpus.index import IndexConfig, load_index
from capwright.corpus.index import run as build_index
from capwright.corpus.pictures import load_pixels
from capwright.corpus.places import ByteReader
from capwright.corpus.sidecars import captions_of

IGNORE = 255  # a pixel of the segmentation that is neither learned nor scored
MEMBERS = ("seg.png", "depth.npy", "boxes.json")


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object of a scene, as placed by whoever made the scene."""

    class_name: str
    name: str
    caption: str
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the stored picture
    depth_m: float


@dataclass(frozen=True, kw_only=True)
class LabelledScenes:
    """N scenes in memory; the lists run in the order of the index."""

    images_NSS3: NDArray[np.uint8]
    seg_NSS: NDArray[np.uint8]  # 0 = background, IGNORE = not labelled
    depth_NSS: NDArray[np.float32]  # metres; 0 where unknown
    classes: tuple[str, ...]  # names by number, the background first
    objects: tuple[tuple[SceneObject, ...], ...]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)


def load_dense(
    source: Path | pa.Table, size: int, *, label_size: int | None = None, limit: int | None = None
) -> LabelledScenes:
    """Read the first `limit` scenes of a work folder, a folder of tars or an index.

    Pictures come at `size`, labels at `label_size` (the same by default). Raises CapwrightError
    for a sample without its labels, a label outside classes.json, too few scenes or none.
    """
    index = scene_index(source)
    if limit is not None:
        if index.num_rows < limit:
            raise CapwrightError(
                f"{_name(source)} has {index.num_rows} scenes, but {limit} were asked for: "
                "make more scenes or ask for fewer"
            )
        index = index.slice(0, limit)
    if index.num_rows == 0:
        raise CapwrightError(f"{_name(source)} has no scenes: run `capwright scenes` first")
    classes = class_names(index)
    seg, depth, objects = _labels(index, label_size or size, classes)
    return LabelledScenes(
        images_NSS3=load_pixels(index, size=size),
        seg_NSS=seg,
        depth_NSS=depth,
        classes=classes,
        objects=objects,
        keys=tuple(index["key"].to_pylist()),
    )


def scene_index(source: Path | pa.Table) -> pa.Table:
    """The index of a work folder or, made on the spot, of a folder of tars."""
    if isinstance(source, pa.Table):
        return source
    if (source / "index").is_dir():
        return load_index(source)
    with tempfile.TemporaryDirectory(prefix="capwright-index-") as work:
        build_index(IndexConfig(corpus=str(source), work=Path(work)))
        return load_index(Path(work))


def scenes_folder(index: pa.Table) -> Path:
    """The folder that holds the tars, `classes.json` and `oracle/`."""
    folders = {str(Path(path).parent) for path in index["file"].unique().to_pylist()}
    if len(folders) != 1:
        raise CapwrightError(
            f"the scenes lie in {len(folders)} folders, each with its own classes: "
            "index them separately"
        )
    return Path(folders.pop())


def class_names(index: pa.Table) -> tuple[str, ...]:
    """Class names by number, the background first, from the `classes.json` beside the tars."""
    path = scenes_folder(index) / "classes.json"
    content = read_json(path)
    try:
        names = [content["background"], *(item["name"] for item in content["classes"])]
    except (KeyError, TypeError):
        raise CapwrightError(
            f"{path} lacks 'background' or a class 'name': expected "
            '{"background": "background", "classes": [{"name": "birds"}, ...]}'
        ) from None
    if len(names) > IGNORE:
        raise CapwrightError(
            f"{path} has {len(names)} classes: at most {IGNORE} fit in a label picture"
        )
    return tuple(names)


def oracle_captions(source: Path | pa.Table) -> list[list[str]]:
    """The full human captions kept aside in `oracle/`; for evaluation, never for a stage."""
    index = scene_index(source)
    return captions_of(index, scenes_folder(index) / "oracle")


def _labels(
    index: pa.Table, size: int, classes: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], tuple[tuple[SceneObject, ...], ...]]:
    seg_NSS = np.empty((index.num_rows, size, size), np.uint8)
    depth_NSS = np.empty((index.num_rows, size, size), np.float32)
    objects = []
    columns = (index[name].to_pylist() for name in ("key", "file", "members"))
    with ByteReader() as reader:
        for i, (key, path, members) in enumerate(zip(*columns, strict=True)):
            seg, depth, boxes = _members(reader, key, path, members)
            _check_labels(key, seg, depth, classes)
            seg_NSS[i] = nearest(seg, size)
            depth_NSS[i] = nearest(np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0), size)
            objects.append(_objects(key, boxes))
    return seg_NSS, depth_NSS, tuple(objects)


def _members(
    reader: ByteReader, key: str, path: str, members: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], Any]:
    places = {member["suffix"]: (member["offset"], member["size"]) for member in members}
    missing = [suffix for suffix in MEMBERS if suffix not in places]
    if missing:
        raise CapwrightError(
            f"sample {key!r} in {path} has no .{missing[0]}: dense evaluation needs scenes with "
            f"{', '.join('.' + suffix for suffix in MEMBERS)}, as `capwright scenes` writes them"
        )
    content = {suffix: reader.read(path, *places[suffix]) for suffix in MEMBERS}
    try:
        with Image.open(io.BytesIO(content["seg.png"])) as picture:
            seg_HW = np.asarray(picture)
        depth_HW = np.load(io.BytesIO(content["depth.npy"]), allow_pickle=False)
        boxes = json.loads(content["boxes.json"])
    except (OSError, ValueError) as error:
        raise CapwrightError(
            f"sample {key!r} in {path} has broken labels ({error}): make the scenes again"
        ) from error
    return seg_HW, depth_HW.astype(np.float32), boxes


def _check_labels(
    key: str, seg_HW: NDArray[np.uint8], depth_HW: NDArray[np.float32], classes: Sequence[str]
) -> None:
    if seg_HW.ndim != 2 or seg_HW.dtype != np.uint8 or seg_HW.shape != depth_HW.shape:
        raise CapwrightError(
            f"sample {key!r} has a segmentation {seg_HW.dtype} {seg_HW.shape} and a depth "
            f"{depth_HW.shape}: both must be [H, W] of one size, the segmentation of 8 bits"
        )
    wrong = seg_HW[(seg_HW >= len(classes)) & (seg_HW != IGNORE)]
    if wrong.size:
        raise CapwrightError(
            f"sample {key!r} has the label {int(wrong[0])}, but classes.json allows 0 to "
            f"{len(classes) - 1} (and {IGNORE} for ignored pixels): use the classes.json that was "
            "written with these scenes"
        )


def _objects(key: str, boxes: Any) -> tuple[SceneObject, ...]:
    try:
        return tuple(
            SceneObject(
                class_name=box["class"],
                name=box["name"],
                caption=box["caption"],
                box=tuple(box["box"]),
                depth_m=float(box["depth_m"]),
            )
            for box in boxes
        )
    except (KeyError, TypeError) as error:
        raise CapwrightError(
            f"sample {key!r} has a box without {error} in .boxes.json: each needs class, name, "
            "caption, box and depth_m"
        ) from None


def nearest(values_HW: NDArray[Any], size: int) -> NDArray[Any]:
    """Shorter side to `size` and the centre cut out, each pixel the nearest of the source."""
    height, width = values_HW.shape
    return values_HW[
        np.ix_(_nearest_index(height, width, size), _nearest_index(width, height, size))
    ]


def _nearest_index(side: int, other: int, size: int) -> NDArray[np.intp]:
    resized = max(size, round(side * size / min(side, other)))
    start = (resized - size) // 2
    centres = (np.arange(start, start + size) + 0.5) * side / resized
    return centres.astype(np.intp)


def _name(source: Path | pa.Table) -> str:
    return "the index" if isinstance(source, pa.Table) else str(source)
