"""Caption sidecars: one parquet file per shard and stage beside the index, joined to it by key.

Adding a caption source to ten million pairs touches no tar. A file is renamed into place when it
is complete, so its presence says that the shard is done. Dropped captions stay, with `keep` false
and the reason. `box` is the region that a caption is about, as fractions (left, top, right, bottom)
of the picture's width and height, or null for the whole picture.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    files = sorted(folder.glob("*.parquet"))
    if shards is not None:
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
    """Kept captions of every row of the index, in the order of the sidecar; `folder` None is the
    alt text.

    The join is per shard, since keys are unique within a shard only. Captions without words count
    as none.
    """
    if folder is None:
        texts = zip(index["text"].to_pylist(), index["more_texts"].to_pylist(), strict=True)
        return [[text, *(more or ())] if text else [] for text, more in texts]
    joined: list[list[str]] = []
    for shard, keys in _runs(index):
        table = read_sidecars(folder, [shard], ["key", "source", "text", "keep"])
        mask = pc.and_(table["keep"], pc.not_equal(table["text"], ""))
        if sources is not None:
            mask = pc.and_(mask, pc.is_in(table["source"], value_set=pa.array(list(sources))))
        table = table.filter(mask)
        found: dict[str, list[str]] = {}
        for key, text in zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True):
            found.setdefault(key, []).append(text)
        joined += [found.get(key, []) for key in keys]
    return joined


def _runs(index: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """Each run of rows of one shard: the shard and the keys, without an object for each row."""
    runs = pc.run_end_encode(index["shard"].combine_chunks())
    start = 0
    for shard, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield shard, index["key"].slice(start, end - start).to_pylist()
        start = end
