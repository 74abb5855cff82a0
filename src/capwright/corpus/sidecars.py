"""Caption sidecars: one parquet file per shard and stage beside the index, joined to it by key.

Adding a caption source to ten million pairs touches no tar. A file is renamed into place when it
is complete, so its presence says that the shard is done. Dropped captions stay, with `keep` false
and the reason. `box` is the region that a caption is about, as fractions (left, top, right, bottom)
of the picture's width and height, or null for the whole picture.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("score", pa.float32()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("box", pa.list_(pa.float32())),
    ]
)
DEFAULTS: Mapping[str, Any] = {
    "model": "", "revision": "", "prompt": "", "seed": 0, "score": None, "keep": True, "reason": "",
    "box": None,
}  # fmt: skip


def has_sidecar(folder: Path, shard: str) -> bool:
    """Whether the stage that owns `folder` has finished `shard`."""
    return (folder / f"{shard}.parquet").exists()


def write_sidecar(
    folder: Path,
    shard: str,
    rows: Sequence[Mapping[str, Any]],
    extra: Sequence[pa.Field] = (),
) -> None:
    """Write the captions of one shard, atomically; each row needs key, source and text.

    `extra` are columns of this stage alone, such as further scores; a row without one has null.
    """
    schema = pa.schema([*SCHEMA, *extra])
    table = pa.Table.from_pylist([{**DEFAULTS, **row} for row in rows], schema=schema)
    with atomic_path(folder / f"{shard}.parquet") as temporary:
        pq.write_table(table, temporary)


def read_sidecars(
    folder: Path, shards: Sequence[str] | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the stage's captions, shards sorted by name, with the stage's own columns.

    Raises CapwrightError where a shard is missing.
    """
    if shards is None:
        files = sorted(folder.glob("*.parquet"))
    else:
        files = [folder / f"{shard}.parquet" for shard in sorted(shards)]
    missing = [file.stem for file in files if not file.exists()]
    if missing or not files:
        raise CapwrightError(
            f"{folder} has no captions for {', '.join(missing[:3]) or 'any shard'}: "
            "run the stage that writes them first"
        )
    wanted = None if columns is None else list(columns)
    return pa.concat_tables(
        [pq.read_table(file, columns=wanted, partitioning=None) for file in files],
        promote_options="default",
    )


def captions_of(
    index: pa.Table, folder: Path | None, sources: Sequence[str] | None = None
) -> list[list[str]]:
    """`join_captions` as Python lists, one for each row of the index."""
    joined: list[list[str]] = []
    parts = (
        [_alt_texts(index)]
        if folder is None
        else (_part(folder, sources, None, *run) for run in _runs(index))
    )
    for part in parts:  # a shard at once: less memory
        texts, bounds = part.texts.to_pylist(), part.bounds_N1.tolist()
        joined += [texts[start:end] for start, end in pairwise(bounds)]
    return joined


@dataclass(frozen=True, kw_only=True)
class JoinedCaptions:
    """Captions of an index of N rows, one after the other in arrow's memory."""

    texts: pa.LargeStringArray
    bounds_N1: NDArray[np.int64]  # row n has texts[bounds[n] : bounds[n + 1]]
    scores: NDArray[np.float64] | None = None  # one for each text; nan where it has none

    def buffers(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Text t is bytes offsets[t] to offsets[t + 1] of the data, as UTF-8."""
        if not len(self.texts):
            return np.zeros(1, np.int64), np.zeros(0, np.uint8)
        _, offsets, data = self.texts.buffers()
        first = self.texts.offset
        offsets_T1 = np.frombuffer(offsets, np.int64)[first : first + len(self.texts) + 1]
        start, end = offsets_T1[0], offsets_T1[-1]
        return offsets_T1 - start, np.frombuffer(data, np.uint8)[start:end]


def join_captions(
    index: pa.Table,
    folder: Path | None,
    sources: Sequence[str] | None = None,
    score: str | None = None,
) -> JoinedCaptions:
    """Kept captions of every row of the index, in the order of the sidecar; `folder` None is the
    alt text. `score` is a column of the sidecar to bring along.

    The join is per shard, since keys are unique within a shard only. Captions without words count
    as none. Raises CapwrightError where a shard or the column is missing.
    """
    if folder is None:
        return _alt_texts(index)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        of_shard = partial(_part, folder, sources, score)
        parts = list(threads.map(lambda run: of_shard(*run), _runs(index)))
    scores = [part.scores for part in parts if part.scores is not None]
    return JoinedCaptions(
        texts=pa.concat_arrays([pa.array([], pa.large_string()), *(part.texts for part in parts)]),
        bounds_N1=_bounds([np.diff(part.bounds_N1) for part in parts]),
        scores=None if score is None else np.concatenate([np.empty(0), *scores]),
    )


def _part(
    folder: Path, sources: Sequence[str] | None, score: str | None, shard: str, keys: pa.Array
) -> JoinedCaptions:
    """Captions of the rows of one shard, which have these keys."""
    table = _kept(folder, shard, sources, score)
    row = pc.index_in(table["key"], value_set=keys).combine_chunks()
    if row.null_count:  # captions of pictures that the index does not have
        table, row = table.filter(row.is_valid()), row.drop_null()
    row_K = row.to_numpy().astype(np.int64)
    if (np.diff(row_K) < 0).any():
        order_K = np.argsort(row_K, kind="stable")
        table, row_K = table.take(order_K), row_K[order_K]
    return JoinedCaptions(
        texts=table["text"].cast(pa.large_string()).combine_chunks(),
        bounds_N1=_bounds([np.bincount(row_K, minlength=len(keys))]),
        scores=None if score is None else table[score].cast(pa.float64()).to_numpy(),
    )


def _kept(folder: Path, shard: str, sources: Sequence[str] | None, score: str | None) -> pa.Table:
    """The captions of a shard that are kept, have words and are of one of `sources`."""
    wanted = {"key", "text", "keep", *(() if sources is None else ("source",))}
    if score is not None and has_sidecar(folder, shard):
        schema = pq.read_schema(folder / f"{shard}.parquet")
        numbers = [f.name for f in schema if pa.types.is_floating(f.type) or _whole(f.type)]
        if score not in numbers:
            raise CapwrightError(
                f"{folder} has no column {score!r} of numbers for the captions of {shard}: "
                f"such columns are {', '.join(numbers)}"
            )
        wanted.add(score)
    table = read_sidecars(folder, [shard], sorted(wanted))
    mask = pc.and_(table["keep"], pc.not_equal(table["text"], ""))
    if sources is not None:
        mask = pc.and_(mask, pc.is_in(table["source"], value_set=pa.array(list(sources))))
    return table.filter(mask)


def _whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _alt_texts(index: pa.Table) -> JoinedCaptions:
    """`text`, then `more_texts`."""
    texts = index["text"].cast(pa.large_string()).combine_chunks()
    row_K = np.arange(index.num_rows)
    more = index["more_texts"].cast(pa.large_list(pa.large_string())).combine_chunks()
    further = more.flatten()
    if len(further):
        row_K = np.concatenate([row_K, more.value_parent_indices().to_numpy()])
        order_K = np.argsort(row_K, kind="stable")
        texts, row_K = pa.concat_arrays([texts, further]).take(order_K), row_K[order_K]
    mask = pc.fill_null(pc.not_equal(texts, ""), False)
    counts = np.bincount(row_K[mask.to_numpy(zero_copy_only=False)], minlength=index.num_rows)
    return JoinedCaptions(texts=texts.filter(mask), bounds_N1=_bounds([counts]))


def _bounds(counts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]), dtype=np.int64)


def _runs(index: pa.Table) -> Iterator[tuple[str, pa.Array]]:
    """Each run of rows of one shard: the shard and the keys, without an object for each row."""
    runs = pc.run_end_encode(index["shard"].combine_chunks())
    start = 0
    for shard, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield shard, index["key"].slice(start, end - start).combine_chunks()
        start = end
