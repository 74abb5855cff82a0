"""Caption sidecars: one parquet file per shard and stage beside the index, joined to it by key.

Adding a caption source to ten million pairs touches no tar. A file is renamed into place when it
is complete, so its presence says that the shard is done. Dropped captions stay, with `keep` false
and the reason.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
    ]
)
DEFAULTS: Mapping[str, Any] = {
    "model": "", "revision": "", "prompt": "", "seed": 0, "score": None, "keep": True, "reason": "",
}  # fmt: skip


def has_sidecar(folder: Path, shard: str) -> bool:
    """Whether the stage that owns `folder` has finished `shard`."""
    return (folder / f"{shard}.parquet").exists()


def write_sidecar(folder: Path, shard: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the captions of one shard, atomically; each row needs key, source and text."""
    table = pa.Table.from_pylist([{**DEFAULTS, **row} for row in rows], schema=SCHEMA)
    with atomic_path(folder / f"{shard}.parquet") as temporary:
        pq.write_table(table, temporary)


def read_sidecars(folder: Path, shards: Sequence[str] | None = None) -> pa.Table:
    """Read the stage's captions, shards sorted by name; raises CapwrightError where a shard is
    missing.
    """
    files = sorted(folder.glob("*.parquet"))
    if shards is not None:
        files = [folder / f"{shard}.parquet" for shard in sorted(shards)]
    missing = [file.stem for file in files if not file.exists()]
    if missing or not files:
        raise CapwrightError(
            f"{folder} has no captions for {', '.join(missing[:3]) or 'any shard'}: "
            "run the stage that writes them first"
        )
    return pa.concat_tables([pq.read_table(file, schema=SCHEMA) for file in files])


def captions_of(
    index: pa.Table, folder: Path | None, sources: Sequence[str] | None = None
) -> list[list[str]]:
    """Kept captions of every row of the index, in the order of the sidecar; `folder` None is the
    alt text.

    The join is per shard, since keys are unique within a shard only. Captions without words count
    as none.
    """
    if folder is None:
        return [[text] if text else [] for text in index["text"].to_pylist()]
    joined: list[list[str]] = []
    for shard, keys in _runs(index):
        table = read_sidecars(folder, [shard])
        mask = pc.and_(table["keep"], pc.not_equal(table["text"], ""))
        if sources is not None:
            mask = pc.and_(mask, pc.is_in(table["source"], value_set=pa.array(list(sources))))
        table = table.filter(mask)
        found: dict[str, list[str]] = {}
        for key, text in zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True):
            found.setdefault(key, []).append(text)
        joined += [found.get(key, []) for key in keys]
    return joined


def _runs(index: pa.Table) -> list[tuple[str, list[str]]]:
    runs: list[tuple[str, list[str]]] = []
    for shard, key in zip(index["shard"].to_pylist(), index["key"].to_pylist(), strict=True):
        if not runs or runs[-1][0] != shard:
            runs.append((shard, []))
        runs[-1][1].append(key)
    return runs
