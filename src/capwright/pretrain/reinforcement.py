"""What `capwright reinforce` stored of the teachers' knowledge, as training reads it.

Reads: WORK/captions/STAGE/SHARD.parquet. For each picture one row without text that holds its
augmentations (`replay.py`), the teachers' image embeddings of each, and their widths; then one row
a caption with the teachers' text embedding. Embeddings are bfloat16, the teachers side by side.
Writes: WORK/reinforced/STAGE/SHARD.DIGEST/*.npy, the same as memory maps, once for each version of
a shard, since parquet cannot be read by row without decoding what lies around it.

Captions are found by a 64-bit hash of their text among those of their picture.

Shapes: n pictures of a shard, B pictures of a batch, A augmentations of a picture, T captions,
K teachers, D the widths of all teachers together.
"""

import fcntl
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.corpus.index import load_shard, shard_sizes
from capwright.corpus.sidecars import has_sidecar, read_sidecars
from capwright.pretrain.replay import Augmentation, parse

# columns that the stage adds to a sidecar
AUGMENTATIONS = pa.field("augmentations", pa.string())
IMAGE_EMBEDDINGS = pa.field("image_embeddings", pa.large_binary())
TEXT_EMBEDDING = pa.field("text_embedding", pa.large_binary())
WIDTHS = pa.field("widths", pa.list_(pa.int32()))
FIELDS = (AUGMENTATIONS, IMAGE_EMBEDDINGS, TEXT_EMBEDDING, WIDTHS)

ARRAYS = (
    "images_AD", "image_start_n", "json", "json_start_n", "texts_TD", "text_start_n", "hash_T",
)  # fmt: skip


def pack(values: Tensor) -> bytes:
    """A tensor as the bytes of bfloat16, row by row."""
    bits = values.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16)
    return bits.numpy().tobytes()


def unpack(data: bytes, width: int) -> Tensor:
    """bfloat16 [rows, width] from bytes that `pack` made."""
    return _as_bf16(np.frombuffer(data, np.int16).reshape(-1, width).copy())


def text_hash(text: str) -> int:
    """Stands for a caption."""
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True
    )


class Reinforcements:
    """The stored knowledge by row of the index; it can be pickled, and opens its maps when used."""

    def __init__(self, work: Path, stage: str) -> None:
        """Make the memory maps that are missing.

        Raises CapwrightError where the stage has not finished, or its shards have other teachers.
        """
        sizes = shard_sizes(work)
        folder = work / "captions" / stage
        missing = [shard for shard in sizes if not has_sidecar(folder, shard)]
        if missing:
            raise CapwrightError(
                f"{folder} has no teachers' knowledge for {', '.join(missing[:3])}: "
                "run `capwright reinforce` on the whole corpus first"
            )
        self._starts = np.cumsum([0, *sizes.values()])
        self._folders = list(_maps(work, folder, stage, list(sizes)))
        self._open: dict[int, dict[str, NDArray[Any]]] = {}
        found = {tuple(np.load(maps / "widths.npy").tolist()) for maps in self._folders} - {()}
        if not found:
            raise CapwrightError(
                f"no picture in {folder} has teachers' embeddings: look at its column `reason`"
            )
        if len(found) > 1:
            raise CapwrightError(
                f"the shards of {folder} have embeddings of the widths {sorted(found)}: "
                "all need the same teachers, so delete the folder and reinforce again"
            )
        self.widths: tuple[int, ...] = found.pop()

    def augmentations(self, row: int) -> list[Augmentation]:
        """The stored augmentations of a picture; none where it failed."""
        arrays, local = self._at(row)
        first, last = arrays["json_start_n"][local : local + 2]
        text = arrays["json"][first:last].tobytes().decode()
        return parse(text) if text else []

    def image(self, row: int, uniform: float) -> Tensor | None:
        """bfloat16 [D] of the augmentation that a draw from 0 to 1 chooses; None where it failed.

        The same draw chooses the same one as `choice(augmentations(row), draw)`.
        """
        arrays, local = self._at(row)
        first, last = arrays["image_start_n"][local : local + 2]
        if first == last:
            return None
        return _as_bf16(arrays["images_AD"][first + int(uniform * (last - first))].copy())

    def text(self, row: int, text: str) -> Tensor | None:
        """bfloat16 [D] of one of the picture's captions; None where it has no such caption."""
        arrays, local = self._at(row)
        first, last = arrays["text_start_n"][local : local + 2]
        found = np.flatnonzero(arrays["hash_T"][first:last] == text_hash(text))
        return _as_bf16(arrays["texts_TD"][first + found[0]].copy()) if len(found) else None

    def split(self, values: Tensor) -> Sequence[Tensor]:
        """[..., D] to one tensor for each teacher."""
        parts: Sequence[Tensor] = values.split(list(self.widths), dim=-1)
        return parts

    def _at(self, row: int) -> tuple[dict[str, NDArray[Any]], int]:
        shard = int(np.searchsorted(self._starts, row, "right")) - 1
        if shard not in self._open:
            self._open[shard] = {
                name: np.load(self._folders[shard] / f"{name}.npy", mmap_mode="r")
                for name in ARRAYS
            }
        return self._open[shard], int(row - self._starts[shard])

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_open": {}}


def choice(augmentations: Sequence[Augmentation], uniform: float) -> Augmentation:
    """The augmentation that a draw from 0 to 1 chooses."""
    return augmentations[int(uniform * len(augmentations))]


def _as_bf16(bits: NDArray[np.int16]) -> Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16)


def _maps(work: Path, folder: Path, stage: str, shards: Sequence[str]) -> Iterator[Path]:
    """The folder of each shard's maps, made where it is missing."""
    place = work / "reinforced" / stage
    names = {shard: place / f"{shard}.{_version(work, folder, shard)}" for shard in shards}
    if not all(maps.exists() for maps in names.values()):
        with _in_turn(place):
            todo = {shard: maps for shard, maps in names.items() if not maps.exists()}
            with Progress(f"{stage} as memory maps", len(todo), "shards") as progress:
                for shard, maps in todo.items():
                    _write_maps(work, folder, shard, maps)
                    progress.advance()
    yield from names.values()


@contextmanager
def _in_turn(place: Path) -> Iterator[None]:
    """Processes that train together all come here: the first writes, the others wait."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _version(work: Path, folder: Path, shard: str) -> str:
    files = (folder / f"{shard}.parquet", work / "index" / f"{shard}.parquet")
    return digest([[file.stat().st_size, file.stat().st_mtime_ns] for file in files])


class _Stored(NamedTuple):
    """What a sidecar says of one picture."""

    json: bytes
    images: bytes
    texts: dict[int, bytes]


def _write_maps(work: Path, folder: Path, shard: str, maps: Path) -> None:
    table = read_sidecars(folder, [shard])
    widths = _widths(table, folder, shard)
    width = max(1, sum(widths))
    found = _by_key(table)
    keys = load_shard(work, shard, ["key"])["key"].to_pylist()
    nothing = _Stored(b"", b"", {})
    rows = [found.get(key, nothing) for key in keys]
    texts = [data for row in rows for data in row.texts.values()]
    arrays: dict[str, NDArray[Any]] = {
        "images_AD": _int16(b"".join(row.images for row in rows), width),
        "image_start_n": _starts([len(row.images) // (2 * width) for row in rows]),
        "json": np.frombuffer(b"".join(row.json for row in rows), np.uint8),
        "json_start_n": _starts([len(row.json) for row in rows]),
        "texts_TD": _int16(b"".join(texts), width),
        "text_start_n": _starts([len(row.texts) for row in rows]),
        "hash_T": np.array([number for row in rows for number in row.texts], np.int64),
        "widths": np.array(widths, np.int64),
    }
    with atomic_path(maps) as temporary:
        temporary.mkdir()
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)


def _widths(table: pa.Table, folder: Path, shard: str) -> tuple[int, ...]:
    if any(name not in table.column_names for name in (field.name for field in FIELDS)):
        raise CapwrightError(
            f"{folder / shard}.parquet has no teachers' embeddings: reinforced.stage must name "
            "a stage that `capwright reinforce` wrote"
        )
    found = {tuple(value) for value in table[WIDTHS.name].to_pylist() if value}
    if len(found) > 1:
        raise CapwrightError(
            f"{folder / shard}.parquet has embeddings of the widths {sorted(found)}: "
            "all need the same teachers, so delete the folder and reinforce again"
        )
    return found.pop() if found else ()


def _by_key(table: pa.Table) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    columns = ("key", "text", AUGMENTATIONS.name, IMAGE_EMBEDDINGS.name, TEXT_EMBEDDING.name)
    for batch in table.select(columns).to_batches():
        for key, text, augmentations, images, embedding in zip(
            *(batch[name].to_pylist() for name in columns), strict=True
        ):
            if augmentations:
                found[key] = _Stored(augmentations.encode(), images, {})
            elif embedding and key in found:
                found[key].texts.setdefault(text_hash(text), embedding)
    return found


def _int16(data: bytes, width: int) -> NDArray[np.int16]:
    return np.frombuffer(data, np.int16).reshape(-1, width)


def _starts(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *counts], dtype=np.int64)
