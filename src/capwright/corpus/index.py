"""The index: every shard read once, a parquet row per sample, in the work folder and never beside
the data.

Reads a corpus (see `reader.py` for the formats; every address through fsspec). Writes
WORK/index/SHARD.parquet and manifest.json. Run: `capwright index CORPUS --work WORK`. The row
number over all shards, sorted by name, is a sample's global index; whatever is random later is a
function of (seed, global index), so workers and ranks cannot change it.

A shard's parquet footer holds its digest and what was left out, so that neither has to be computed
again over ten million rows.
"""

import importlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.core.files import atomic_path, read_json, remove_partials
from capwright.core.processes import fresh_processes
from capwright.core.progress import Progress
from capwright.core.run_folder import claim, only_one
from capwright.corpus.addresses import detect
from capwright.corpus.reader import Reader, ReadOptions, Shard

FORMATS = ("webdataset", "delimited", "tables", "huggingface", "folder")
MEMBER = pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("file", pa.string()),
        ("text", pa.string()),
        ("more_texts", pa.list_(pa.string())),
        ("json", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.int64()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("image_column", pa.string()),
        ("members", pa.list_(MEMBER)),
    ]
)
DIGESTED = ("key", "sha256", "text", "more_texts", "json")
FOOTER = b"capwright"


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """What to index and where to."""

    corpus: str
    """Folder, file, glob or brace pattern, several joined by `::`; any fsspec address."""
    work: Path
    """Work folder; the index goes to WORK/index."""
    max_failure_rate: float = 0.05
    """Share of broken samples above which indexing stops."""
    format: str = "auto"
    """One of FORMATS, or auto."""
    read: ReadOptions = field(default_factory=ReadOptions)
    """What the layout leaves open."""
    workers: int = 1
    """Processes that read shards."""

    def __post_init__(self) -> None:
        if self.format not in ("auto", *FORMATS):
            raise CapwrightError(
                f"format is {self.format!r}, but must be auto, {', '.join(FORMATS)}"
            )


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """How much is indexed; `failures` counts what was left out, by reason."""

    samples: int
    shards: int
    with_text: int
    failures: dict[str, int]
    format: str


def run(config: IndexConfig) -> IndexSummary:
    """Index the shards that have no parquet file yet.

    Raises CapwrightError for a corpus without samples, two shards of one name, a key that a shard
    has twice, or too many broken samples.
    """
    kind = detect(config.corpus) if config.format == "auto" else config.format
    shards = find_shards(config.corpus, kind, config.read)
    folder = config.work / "index"
    with only_one(folder):
        remove_partials(folder)
        listed = {s.name: [s.address, s.size, s.start, s.stop] for s in shards}
        claim(folder, {"format": kind, "read": as_dict(config.read), "shards": listed})
        failures = Failures("samples", config.max_failure_rate)
        missing = [s for s in shards if not (folder / f"{s.name}.parquet").exists()]
        read = partial(_index_shard, folder, kind, config.read)
        with Progress("index", len(missing), "shards") as progress:
            for counts, samples in _each(read, missing, config.workers):
                failures.merge(counts, samples + sum(counts.values()))
                progress.advance(failed=sum(counts.values()))
        failures.check()
    notes = [_note(folder / f"{shard.name}.parquet") for shard in shards]
    return IndexSummary(
        samples=sum(note["samples"] for note in notes),
        shards=len(shards),
        with_text=sum(note["with_text"] for note in notes),
        failures=left_out(config.work),
        format=kind,
    )


def run_as_before(corpus: str, work: Path) -> IndexSummary:
    """Index what is missing, read as the index in WORK says it was read; for the later stages."""
    manifest = work / "index" / "manifest.json"
    if not manifest.exists():
        return run(IndexConfig(corpus=corpus, work=work))
    plan = read_json(manifest)["plan"]
    read = ReadOptions(**plan["read"])
    # what the first run let pass must not stop the stages after it
    return run(
        IndexConfig(
            corpus=corpus, work=work, format=plan["format"], read=read, max_failure_rate=1.0
        )
    )


def find_shards(corpus: str, kind: str, options: ReadOptions) -> list[Shard]:
    """The shards of a corpus, sorted by name; raises CapwrightError where two have one name."""
    shards = sorted(_reader(kind).find(corpus, options), key=lambda shard: shard.name)
    for one, other in itertools.pairwise(shards):
        if one.name == other.name:
            raise CapwrightError(
                f"two shards are called {one.name!r} ({one.address}, {other.address}): "
                "index them into separate work folders"
            )
    return shards


def index_shards(work: Path) -> list[str]:
    """Names of the indexed shards, in order; raises CapwrightError where there is no index."""
    names = sorted(file.stem for file in (work / "index").glob("*.parquet"))
    if not names:
        raise CapwrightError(
            f"{work} has no index: run `capwright index CORPUS --work {work}` first"
        )
    return names


def load_index(work: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole index, shards sorted by name; raises CapwrightError where there is none."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        shards = threads.map(lambda name: load_shard(work, name, columns), index_shards(work))
        return pa.concat_tables(list(shards))


def load_shard(work: Path, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one shard, in order."""
    wanted = SCHEMA.names if columns is None else list(columns)
    path = work / "index" / f"{shard}.parquet"
    with pq.ParquetFile(path) as file:  # a third of the time of read_table
        return file.read(columns=wanted).replace_schema_metadata(None)


def corpus_digest(work: Path) -> str:
    """Twelve hex digits that change when a sample, its picture or its text does; for manifests."""
    folder = work / "index"
    return digest(
        [[name, _note(folder / f"{name}.parquet")["digest"]] for name in index_shards(work)]
    )


def left_out(work: Path) -> dict[str, int]:
    """Samples that are not in the index, counted by reason."""
    counts: Counter[str] = Counter()
    for name in index_shards(work):
        counts.update(_note(work / "index" / f"{name}.parquet")["left_out"])
    return dict(counts.most_common())


def shard_sizes(work: Path) -> dict[str, int]:
    """Shard name to its number of samples, in order."""
    return {
        name: int(_note(work / "index" / f"{name}.parquet")["samples"])
        for name in index_shards(work)
    }


def write_index_shard(
    folder: Path, shard: str, rows: list[dict[str, Any]], left_out: dict[str, int]
) -> None:
    """Write one shard of the index, atomically."""
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    note = {
        "digest": digest([digest(table[column].to_pylist()) for column in DIGESTED]),
        "samples": table.num_rows,
        "with_text": sum(bool(row["text"]) for row in rows),
        "left_out": left_out,
    }
    table = table.replace_schema_metadata({FOOTER: json.dumps(note).encode()})
    with atomic_path(folder / f"{shard}.parquet") as temporary:
        pq.write_table(table, temporary)


def _each(
    read: "partial[tuple[dict[str, int], int]]", shards: Sequence[Shard], workers: int
) -> Iterator[tuple[dict[str, int], int]]:
    if workers <= 1:
        yield from map(read, shards)
        return
    with fresh_processes(workers) as pool:
        try:
            yield from pool.map(read, shards)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _index_shard(
    folder: Path, kind: str, options: ReadOptions, shard: Shard
) -> tuple[dict[str, int], int]:
    """Read one shard; returns what was left out, by reason, and how many samples there are."""
    failures = Failures("samples", max_rate=1.0)  # the caller judges the rate over all shards
    rows = [{**row, "shard": shard.name} for row in _reader(kind).read(shard, options, failures)]
    _refuse_duplicate_keys(rows, shard.address)
    write_index_shard(folder, shard.name, rows, dict(failures.counts))
    return dict(failures.counts), len(rows)


def _reader(kind: str) -> Reader:
    module: Any = importlib.import_module(f"capwright.corpus.{kind}")
    reader: Reader = module
    return reader


def _note(path: Path) -> dict[str, Any]:
    """What the shard's footer says; each file is opened once while it stays the same."""
    return _read_note(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1 << 17)
def _read_note(path: Path, changed_ns: int) -> dict[str, Any]:
    metadata = pq.read_schema(path).metadata or {}
    if FOOTER not in metadata:
        raise CapwrightError(
            f"{path} was written by another version: delete {path.parent} and index again"
        )
    note: dict[str, Any] = json.loads(metadata[FOOTER])
    return note


def _refuse_duplicate_keys(rows: list[dict[str, Any]], address: str) -> None:
    counts = Counter(row["key"] for row in rows)
    for key, count in counts.most_common(1):
        if count > 1:
            raise CapwrightError(
                f"{address} has the key {key!r} twice: captions join by key, "
                "so make the keys unique"
            )
