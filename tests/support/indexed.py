"""Work folders with an index and score sidecars, written straight from rows, without pictures."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from capwright.corpus.index import write_index_shard
from capwright.corpus.sidecars import write_sidecar

SAMPLE: Mapping[str, Any] = {
    "text": "", "more_texts": [], "json": "", "width": 64, "height": 48, "phash": 0,
    "image_offset": 0, "image_size": 1, "image_column": None, "members": [],
}  # fmt: skip


def write_index(work: Path, shards: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Index rows by shard; each needs a key, and what it leaves out is made up."""
    for shard, samples in shards.items():
        rows = [
            {
                **SAMPLE,
                "shard": shard,
                "file": f"{shard}.tar",
                "sha256": hashlib.sha256(f"{shard}/{sample['key']}".encode()).hexdigest(),
                **sample,
            }
            for sample in samples
        ]
        write_index_shard(work / "index", shard, rows, {})
    return work


def write_scores(
    work: Path,
    stage: str,
    shards: Mapping[str, Sequence[tuple[Any, ...]]],
    extra: Sequence[tuple[str, pa.DataType]] = (),
) -> None:
    """Sidecars of a stage: (key, source, text, score, *extra) a row."""
    names = ("key", "source", "text", "score", *(name for name, _ in extra))
    fields = [pa.field(name, kind) for name, kind in extra]
    for shard, rows in shards.items():
        dicts = [dict(zip(names, row, strict=True)) for row in rows]
        write_sidecar(work / "captions" / stage, shard, dicts, fields)
