"""The trunk's feature maps of every picture, computed once and shared by describe and score.

Reads: the corpus at the index's byte offsets. Writes: WORK/features/lite0/SHARD.npy, one
record a picture with the float16 fields `middle` [112, S/16, S/16],
`deep` [320, S/32, S/32] and `valid` (false where the picture could not be decoded, then the maps
are zero), and manifest.json. A shard is renamed into place when it is complete, so a killed run
goes on where it was.

Algorithm: frozen EfficientNet-Lite0 (`models/trunk.py`), batches of one shard only, so that the
numbers do not depend on which shards were done before.

Shapes: n rows of a shard, N rows of the index, B pictures of a batch, C channels, h and w cells.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.core.run_folder import claim
from capwright.corpus.index import load_shard as load_index_shard
from capwright.corpus.index import shard_sizes
from capwright.corpus.pictures import PictureError, decode_rgb
from capwright.corpus.places import ByteReader, places
from capwright.models import trunk as lite0


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """How pictures become feature maps."""

    work: Path
    """The work folder, which holds the index."""
    picture_size: int = 128
    """Side in pixels to which pictures are resized and cropped; a multiple of 32."""
    batch_size: int = 64
    """Pictures in one pass through the trunk."""
    max_failure_rate: float = 0.05
    """Share of unreadable pictures above which the run fails."""

    def __post_init__(self) -> None:
        if self.picture_size < 64 or self.picture_size % lite0.DEEP_STRIDE:
            raise CapwrightError(
                f"picture_size is {self.picture_size}, but the trunk needs a multiple of "
                "32 from 64 up: try 128"
            )
        if self.batch_size < 1:
            raise CapwrightError(f"batch_size is {self.batch_size}, but must be at least 1: try 64")


@dataclass(frozen=True, kw_only=True)
class FeaturesSummary:
    """What `run` did."""

    pictures: int
    computed: int
    failures: dict[str, int]
    folder: str


def features_folder(work: Path) -> Path:
    """Where the feature maps of the embedded trunk lie."""
    return work / "features" / lite0.TRUNK


def record_type(picture_size: int) -> np.dtype[Any]:
    """The dtype of one picture's record for pictures of `picture_size` pixels."""
    middle, deep = picture_size // lite0.MIDDLE_STRIDE, picture_size // lite0.DEEP_STRIDE
    return np.dtype(
        [
            ("middle", np.float16, (lite0.MIDDLE_CHANNELS, middle, middle)),
            ("deep", np.float16, (lite0.DEEP_CHANNELS, deep, deep)),
            ("valid", np.bool_),
        ],
        align=True,  # torch refuses strides that are no multiple of the element
    )


def run(config: FeaturesConfig) -> FeaturesSummary:
    """Compute what is missing; shards that are there stay as they are."""
    import torch

    folder = features_folder(config.work)
    plan = {"trunk": lite0.revision(), "picture_size": config.picture_size}
    claim(folder, plan)
    sizes = shard_sizes(config.work)
    todo = {s: n for s, n in sizes.items() if not (folder / f"{s}.npy").exists()}
    failures = Failures("pictures", config.max_failure_rate)
    computed = 0
    if todo:
        trunk = lite0.load_trunk()
        total = sum(todo.values())
        with ByteReader() as reader, Progress("features", total, "pictures") as progress:
            for shard in todo:
                table = load_index_shard(config.work, shard)
                records = np.zeros(table.num_rows, record_type(config.picture_size))
                for start in range(0, table.num_rows, config.batch_size):
                    batch = table.slice(start, config.batch_size)
                    pixels_BHW3, valid_B = _decode(batch, config.picture_size, reader, failures)
                    with torch.inference_mode():
                        middle, deep = lite0.feature_maps(trunk, lite0.normalise(pixels_BHW3))
                    part = records[start : start + batch.num_rows]
                    part["middle"] = middle.numpy() * valid_B[:, None, None, None]
                    part["deep"] = deep.numpy() * valid_B[:, None, None, None]
                    part["valid"] = valid_B
                    progress.advance(batch.num_rows, failed=int((~valid_B).sum()))
                _save(folder / f"{shard}.npy", records)
                computed += table.num_rows
        failures.check()
    return FeaturesSummary(
        pictures=sum(sizes.values()),
        computed=computed,
        failures=dict(failures.counts),
        folder=str(folder),
    )


def load_shard(work: Path, shard: str) -> npt.NDArray[Any]:
    """The records of one shard, memory-mapped, in the order of the index."""
    path = features_folder(work) / f"{shard}.npy"
    if not path.exists():
        raise CapwrightError(
            f"There are no feature maps for shard {shard} in {path.parent}: "
            "run `capwright describe` or `capwright score` on this work folder."
        )
    records: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    return records


def load_features(work: Path) -> npt.NDArray[Any]:
    """The records of the whole index in memory, [N]; about 22 kB a picture at 128 pixels."""
    sizes = shard_sizes(work)
    parts = [load_shard(work, shard) for shard in sizes]
    total = sum(len(part) for part in parts)
    if total != sum(sizes.values()):
        raise CapwrightError(
            f"{features_folder(work)} holds {total} pictures and the index "
            f"{sum(sizes.values())}: delete that folder and run again"
        )
    records = np.empty(total, parts[0].dtype)  # np.concatenate would undo the alignment
    start = 0
    for part in parts:
        records[start : start + len(part)] = part
        start += len(part)
    return records


def _decode(
    batch: pa.Table, size: int, reader: ByteReader, failures: Failures
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    pixels = np.zeros((batch.num_rows, size, size, 3), np.uint8)
    valid = np.zeros(batch.num_rows, np.bool_)
    for row, place in enumerate(places(batch)):
        try:
            pixels[row] = decode_rgb(reader.read(*place), size=size)
        except PictureError as error:
            failures.add(str(error))
        else:
            valid[row] = True
            failures.ok()
    return pixels, valid


def _save(path: Path, records: npt.NDArray[Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, records)
