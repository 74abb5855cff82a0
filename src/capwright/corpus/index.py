"""The index: every shard read once, a parquet row per sample, in the work folder and never beside
the data.

Reads a corpus (a path or glob pattern of WebDataset tars, through fsspec). Writes
WORK/index/SHARD.parquet. Run: `capwright index CORPUS --work WORK`. The row number over all
shards, sorted by name, is a sample's global index; whatever is random later is a function of
(seed, global index), so workers and ranks cannot change it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.core.run_folder import claim
from capwright.corpus import webdataset

READERS = {".tar": webdataset.read_shard}
MEMBER = pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("shard_path", pa.string()),
        ("text", pa.string()),
        ("json", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("members", pa.list_(MEMBER)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """What to index and where to."""

    corpus: str  # folder, tar or glob pattern, any fsspec address
    work: Path  # work folder; the index goes to WORK/index
    max_failure_rate: float = 0.05  # share of broken samples above which indexing stops


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """How much is indexed; `failures` counts what was left out, by reason (of this run only)."""

    samples: int
    shards: int
    with_text: int
    failures: dict[str, int]


def run(config: IndexConfig) -> IndexSummary:
    """Index the shards that have no parquet file yet.

    Raises CapwrightError for a corpus without tars, two shards of one name, or too many broken
    samples.
    """
    shards = find_shards(config.corpus)
    folder = config.work / "index"
    claim(folder, {"shards": {name: [path, _size(path)] for name, path in shards.items()}})
    failures = Failures("samples", config.max_failure_rate)
    with Progress("index", len(shards), "shards") as progress:
        for name, path in sorted(shards.items()):
            target = folder / f"{name}.parquet"
            if not target.exists():
                reader = READERS[Path(path).suffix]
                rows = [
                    {**row, "shard": name, "shard_path": path} for row in reader(path, failures)
                ]
                _refuse_duplicate_keys(rows, path)
                with atomic_path(target) as temporary:
                    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
            progress.advance()
    failures.check()
    table = load_index(config.work)
    with_text = sum(bool(text) for text in table["text"].to_pylist())
    return IndexSummary(
        samples=table.num_rows,
        shards=len(shards),
        with_text=with_text,
        failures=dict(failures.counts),
    )


def find_shards(corpus: str) -> dict[str, str]:
    """Map shard names (file name without suffix) to addresses for a folder, a file or a glob
    pattern.
    """
    filesystem, path = fsspec.core.url_to_fs(corpus)
    if filesystem.isdir(path):
        found = [p for p in filesystem.ls(path, detail=False) if Path(p).suffix in READERS]
    else:
        found = [p for p in filesystem.glob(path) if Path(p).suffix in READERS]
    if not found:
        raise CapwrightError(
            f"no shards in {corpus!r}: expected a folder, file or pattern of "
            f"{', '.join(READERS)} files"
        )
    shards: dict[str, str] = {}
    for address in sorted(found):
        name = Path(address).stem
        if name in shards:
            raise CapwrightError(
                f"two shards are called {name!r} ({shards[name]}, {address}): "
                "index them into separate work folders"
            )
        shards[name] = filesystem.unstrip_protocol(address).removeprefix("file://")
    return shards


def load_index(work: Path) -> pa.Table:
    """Return the whole index, shards sorted by name; raises CapwrightError where there is none."""
    files = sorted((work / "index").glob("*.parquet"))
    if not files:
        raise CapwrightError(
            f"{work} has no index: run `capwright index CORPUS --work {work}` first"
        )
    return pa.concat_tables([pq.read_table(file, schema=SCHEMA) for file in files])


def shard_names(index: pa.Table) -> list[str]:
    """Names of the shards in the order of the index."""
    return list(dict.fromkeys(index["shard"].to_pylist()))


def _size(address: str) -> int:
    filesystem, path = fsspec.core.url_to_fs(address)
    return int(filesystem.size(path))


def _refuse_duplicate_keys(rows: list[dict[str, Any]], path: str) -> None:
    seen: set[str] = set()
    for row in rows:
        if row["key"] in seen:
            raise CapwrightError(
                f"{path} has the key {row['key']!r} twice: captions join by key, "
                "so make the keys unique"
            )
        seen.add(row["key"])
