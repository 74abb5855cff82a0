"""Expert labels of every pixel: how sidecars hold them, and reading them in the order of the index.

A sidecar of `capwright experts` has a row a picture with three pictures as PNG in binary columns:
- `segmentation`: 8 bits, the number of a class; 255 is unknown. The names are in the manifest.
- `depth`: 16 bits q; 0 is unknown, else the value is low + (q - 1) / 65534 (high - low) with the
  columns `depth_low` and `depth_high`. Metric depth is kept as its logarithm (of metres), relative
  depth as the expert gives it: inverse, up to an unknown scale and shift.
- `normals`: RGB, 128 + 127 n for a unit vector n (x right, y down, z away from the camera); 0 0 0
  is unknown.

For training they are unpacked once into memory maps in WORK/labels, one a task, which loader
processes share. Relative depth is scaled to 0..1 in each picture there.

Shapes: N rows of the index, B rows of a batch, L side of the labels.
"""

import fcntl
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json
from capwright.core.progress import Progress
from capwright.corpus.sidecars import has_sidecar, read_sidecars
from capwright.pretrain.settings.pseudo_labels import TASKS

IGNORE = 255
MAX_CLASSES = 255
STEPS = 65534  # between the smallest and the largest depth of a picture
METRIC, RELATIVE = "metric", "relative"
FIELDS: Mapping[str, tuple[pa.Field, ...]] = {
    "segmentation": (pa.field("segmentation", pa.binary()),),
    "depth": (
        pa.field("depth", pa.binary()),
        pa.field("depth_low", pa.float32()),
        pa.field("depth_high", pa.float32()),
    ),
    "normals": (pa.field("normals", pa.binary()),),
}
DTYPES = {"segmentation": np.uint8, "depth": np.float16, "normals": np.int8}
UNKNOWN = {"segmentation": IGNORE, "depth": np.nan, "normals": 0}

Labels = dict[str, NDArray[Any]]


class LabelStore:
    """The labels of all rows of an index; pickles to the names of its files."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = dict(files)
        self._maps: Labels = {}

    def __call__(self, row_B: NDArray[np.int64]) -> Labels:
        """segmentation uint8 [B, L, L], depth float16 [B, L, L], normals int8 [B, 3, L, L]."""
        if not self._maps:
            self._maps = {task: np.load(path, mmap_mode="r") for task, path in self.files.items()}
        return {task: values[row_B] for task, values in self._maps.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_maps": {}}


def encode_segmentation(seg_LL: NDArray[np.uint8]) -> dict[str, Any]:
    """The columns of a segmentation."""
    return {"segmentation": _png(seg_LL)}


def encode_depth(depth_LL: NDArray[np.floating]) -> dict[str, Any]:
    """The columns of depths or logarithms of them; NaN is unknown."""
    known_LL = np.isfinite(depth_LL)
    low, high = (
        (float(f(depth_LL[known_LL])) for f in (np.min, np.max)) if known_LL.any() else (0, 0)
    )
    share_LL = (np.where(known_LL, depth_LL, low) - low) / max(high - low, 1e-12)
    q_LL = np.where(known_LL, 1 + np.rint(share_LL * STEPS), 0).astype(np.uint16)
    return {"depth": _png(q_LL), "depth_low": low, "depth_high": high}


def encode_normals(normals_3LL: NDArray[np.floating]) -> dict[str, Any]:
    """The columns of unit vectors; (0, 0, 0) is unknown."""
    known_LL = (normals_3LL != 0).any(axis=0)
    bytes_3LL = np.where(known_LL, 128 + np.rint(127 * normals_3LL), 0).astype(np.uint8)
    return {"normals": _png(np.ascontiguousarray(bytes_3LL.transpose(1, 2, 0)))}


def decode(task: str, row: Mapping[str, Any], kind: str = METRIC) -> NDArray[Any] | None:
    """A row's labels as `LabelStore` gives them; None where the row has none."""
    if row[task] is None:
        return None
    with Image.open(io.BytesIO(row[task])) as picture:
        stored = np.asarray(picture)
    if task == "segmentation":
        return stored
    if task == "normals":
        known_3LL = np.broadcast_to(stored.any(axis=2), (3, *stored.shape[:2]))
        return np.where(known_3LL, stored.transpose(2, 0, 1).astype(np.int16) - 128, 0).astype(
            np.int8
        )
    low, high = (row["depth_low"], row["depth_high"]) if kind == METRIC else (0.0, 1.0)
    values_LL = low + (stored.astype(np.float32) - 1) / STEPS * (high - low)
    return np.where(stored > 0, values_LL, np.nan).astype(np.float16)


def label_plan(folder: Path) -> dict[str, Any]:
    """The plan of the stage in `folder`; raises CapwrightError where there are no labels."""
    if not (folder / "manifest.json").exists():
        raise CapwrightError(
            f"{folder} has no labels: run `capwright experts CORPUS --work {folder.parents[1]}` "
            "first, or set pseudo_labels.stage to the name that they were made under"
        )
    plan: dict[str, Any] = read_json(folder / "manifest.json")["plan"]
    if "labels" not in plan:
        raise CapwrightError(
            f"{folder} holds captions, not labels: set pseudo_labels.stage to a stage of "
            "`capwright experts`"
        )
    return plan


def check_tasks(folder: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """The stage's plan; raises CapwrightError where it has no labels for one of the tasks."""
    plan = label_plan(folder)
    for task in tasks:
        if task not in plan["labels"]:
            raise CapwrightError(
                f"{folder} has labels for {', '.join(plan['labels'])} and none for {task}: set "
                f"pseudo_labels.{task}=0, or label again with an expert for it under another --name"
            )
    return plan


def load_labels(
    folder: Path, index: pa.Table, cache: Path, tasks: Sequence[str] = TASKS
) -> LabelStore:
    """The labels of every row of the index, unpacked into `cache` where they are not yet.

    A picture without labels, or whose labelling failed, is unknown everywhere. Raises
    CapwrightError for a shard without a sidecar and for a task without labels.
    """
    plan = check_tasks(folder, tasks)
    shards = index["shard"].unique().to_pylist()
    missing = [shard for shard in shards if not has_sidecar(folder, shard)]
    if missing:
        raise CapwrightError(
            f"{folder} has no labels for the shards {', '.join(missing[:3])} ({len(missing)} of "
            f"{len(shards)} are missing): run the same `capwright experts` command again"
        )
    sizes = [[shard, (folder / f"{shard}.parquet").stat().st_size] for shard in sorted(shards)]
    name = digest([plan, sizes, index["shard"].to_pylist(), index["key"].to_pylist()])
    files = {task: cache / f"{folder.name}-{task}-{plan['size']}-{name}.npy" for task in tasks}
    with _alone(cache):
        for task, path in files.items():
            if not path.exists():
                _unpack(folder, index, task, plan, path)
    return LabelStore(files)


def _unpack(folder: Path, index: pa.Table, task: str, plan: Mapping[str, Any], path: Path) -> None:
    side = plan["size"]
    shape = (3, side, side) if task == "normals" else (side, side)
    with atomic_path(path) as temporary:
        values = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=DTYPES[task], shape=(index.num_rows, *shape)
        )
        with Progress(f"labels: {task}", index.num_rows, "pictures") as progress:
            for start, found in _decoded(folder, index, task, plan):
                for i, label in enumerate(found, start):
                    values[i] = UNKNOWN[task] if label is None else label
                progress.advance(len(found))
        values.flush()


def _decoded(
    folder: Path, index: pa.Table, task: str, plan: Mapping[str, Any]
) -> Iterator[tuple[int, list[NDArray[Any] | None]]]:
    """For each run of rows of one shard: the first row, and the labels."""
    runs = pc.run_end_encode(index["shard"].combine_chunks())
    columns = ["key", *(field.name for field in FIELDS[task])]
    start = 0
    for shard, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        rows = read_sidecars(folder, [shard], columns).to_pylist()
        labels = {row["key"]: decode(task, row, plan["depth_kind"]) for row in rows}
        keys = index["key"].slice(start, end - start).to_pylist()
        yield start, [labels.get(key) for key in keys]
        start = end


def _png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Hold the cache while it is filled; processes that train together wait for the first."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
