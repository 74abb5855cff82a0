"""What is counted over all rows of a corpus and of a stage, by DuckDB and a shard at a time.

Reads: the index and the sidecars. Writes nothing.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from capwright.captions.runner import FAILED, stage_folder
from capwright.corpus.index import left_out, shard_sizes
from capwright.corpus.sidecars import has_sidecar, read_sidecars

MOST_FREQUENT = 8
SHOWN_CHARACTERS = 300
REASONS = 14


def corpus_counts(work: Path) -> dict[str, Any]:
    """Pictures, shards, what the index left out and why, equal pictures and equal hashes."""
    sizes = shard_sizes(work)
    files = [str(work / "index" / f"{shard}.parquet") for shard in sizes]
    distinct, hashes, small = _query(
        "SELECT count(DISTINCT sha256), count(DISTINCT phash), "
        "count(*) FILTER (width < 64 OR height < 64) FROM read_parquet(?)",
        files,
    )[0]
    return {
        "pictures": sum(sizes.values()),
        "shards": len(sizes),
        "left_out": left_out(work),
        "distinct_pictures": distinct,
        "distinct_hashes": hashes,
        "small_pictures": small,
    }


def stage_counts(work: Path, stage: str) -> dict[str, Any]:
    """Rows of a stage, those that it kept, the reasons counted, and what failed."""
    folder = stage_folder(work, stage)
    rows = kept = done = 0
    reasons: Counter[str] = Counter()
    for shard in shard_sizes(work):
        if not has_sidecar(folder, shard):
            continue
        done += 1
        table = read_sidecars(folder, [shard], ["keep", "reason"])
        rows += table.num_rows
        kept += int(pc.sum(table["keep"]).as_py() or 0)
        for count in pc.value_counts(table["reason"]).to_pylist():
            reasons[count["values"] or ""] += count["counts"]
    reasons.pop("", None)
    failed = {r.removeprefix(FAILED): n for r, n in reasons.items() if r.startswith(FAILED)}
    told = Counter({r: n for r, n in reasons.items() if not r.startswith(FAILED)})
    return {
        "rows": rows,
        "kept": kept,
        "shards_done": done,
        "reasons": dict(told.most_common(REASONS)),
        "failed": dict(Counter(failed).most_common(REASONS)),
    }


def text_counts(work: Path, folder: Path | None) -> dict[str, Any]:
    """Different texts of a source over all its rows, and the most frequent ones."""
    if folder is None:
        rows = "unnest(list_prepend(text, coalesce(more_texts, []))) AS text"
        where = "true"
        files = [str(work / "index" / f"{shard}.parquet") for shard in shard_sizes(work)]
    else:
        rows, where = "text", "keep"
        files = [str(f) for s in shard_sizes(work) if (f := folder / f"{s}.parquet").exists()]
    frequent = _query(
        f"WITH texts AS (SELECT {rows} FROM read_parquet(?, union_by_name = true) WHERE {where}), "
        "counted AS (SELECT text, count(*) AS n FROM texts WHERE text <> '' GROUP BY text) "
        "SELECT text, n, count(*) OVER () FROM counted ORDER BY n DESC, text "
        f"LIMIT {MOST_FREQUENT}",
        files,
    )
    return {
        "distinct": frequent[0][2] if frequent else 0,
        "frequent": [[text[:SHOWN_CHARACTERS], n] for text, n, _ in frequent],
    }


def _query(sql: str, files: list[str]) -> list[Any]:
    """Run a statement over parquet files; what does not fit into 2 GB goes to a temporary disk."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="capwright-") as spill:
        settings = {"memory_limit": "2GB", "temp_directory": spill}
        with duckdb.connect(config=settings) as connection:
            rows: list[Any] = connection.execute(sql, [files]).fetchall()
            return rows
