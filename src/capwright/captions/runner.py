"""The resumable loop that every caption stage shares: one sidecar per shard, written when complete.

Reads: the index. Writes: WORK/captions/STAGE/SHARD.parquet and manifest.json.

A stage gives a function from a shard's rows of the index to caption rows. A shard that has its
sidecar is not computed again, another plan is refused, and every kept or dropped caption's reason
is counted. For a killed and rerun stage to write the same files as an uninterrupted one, the
function must depend on the shard alone: seed what is random with `shard_seed`.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from capwright.core.config import digest
from capwright.core.progress import Progress
from capwright.core.run_folder import claim
from capwright.corpus.index import shard_names
from capwright.corpus.sidecars import has_sidecar, read_sidecars, write_sidecar

CaptionShard = Callable[[pa.Table], list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """What a caption stage left behind; `reasons` counts all rows of all shards."""

    stage: str
    pictures: int
    captions: int
    kept: int
    shards: int
    shards_reused: int
    reasons: dict[str, int]
    seconds: float
    folder: str


def stage_folder(work: Path, stage: str) -> Path:
    """Where the sidecars of `stage` lie, for example `stage_folder(work, "describe-small")`."""
    return work / "captions" / stage


def corpus_digest(index: pa.Table) -> str:
    """Twelve hex digits that change when a sample, its picture or its text does; for manifests."""
    columns = ("shard", "key", "sha256", "text", "json")
    return digest([digest(index[column].to_pylist()) for column in columns])


def shard_seed(seed: int, shard: str) -> int:
    """A seed that depends on the run's seed and the shard's name alone, below 2**48."""
    return int(digest([seed, shard]), 16)


def shard_table(index: pa.Table, shard: str) -> pa.Table:
    """The rows of one shard, in order."""
    return index.filter(pc.equal(index["shard"], shard))


def missing_shards(index: pa.Table, folder: Path) -> list[str]:
    """Shards that the stage in `folder` has not finished."""
    return [shard for shard in shard_names(index) if not has_sidecar(folder, shard)]


def run_stage(
    index: pa.Table, folder: Path, plan: Mapping[str, Any], caption_shard: CaptionShard
) -> StageSummary:
    """Write the missing sidecars of the stage in `folder`; see the module's docstring.

    `caption_shard` returns sidecar rows (`key`, `source` and `text` at least) for a shard's table.
    Raises CapwrightError when `folder` was begun with another plan.
    """
    began = time.monotonic()
    claim(folder, {**plan, "corpus": corpus_digest(index)})
    missing = missing_shards(index, folder)
    rows_left = sum(shard_table(index, shard).num_rows for shard in missing)
    with Progress(folder.name, rows_left, "pictures") as progress:
        for shard in missing:
            table = shard_table(index, shard)
            write_sidecar(folder, shard, caption_shard(table))
            progress.advance(table.num_rows)
    names = shard_names(index)
    written = read_sidecars(folder, names)
    reasons = Counter(reason for reason in written["reason"].to_pylist() if reason)
    return StageSummary(
        stage=folder.name,
        pictures=index.num_rows,
        captions=written.num_rows,
        kept=int(pc.sum(written["keep"]).as_py() or 0),
        shards=len(names),
        shards_reused=len(names) - len(missing),
        reasons=dict(reasons.most_common()),
        seconds=round(time.monotonic() - began, 3),
        folder=str(folder),
    )
