"""The resumable loop that every caption stage shares: one sidecar per shard, written when complete.

Reads: the index. Writes: WORK/captions/STAGE/SHARD.parquet and manifest.json.

A stage gives a function that makes its worker, and the worker turns a shard's rows of the index
into caption rows. A shard that has its sidecar is not computed again, another plan is refused, and
every kept or dropped caption's reason is counted. For a killed and rerun stage to write the same
files as an uninterrupted one, the worker must depend on the shard alone: seed what is random with
`shard_seed`. Where the shards are worked on (here, in processes, on a Ray cluster) is `engines.py`.

A picture that failed has a row with `keep` false and a reason that begins with "failed: "; it
counts towards the failure rate, which all workers are watched for while they work, and
`retry_failed` asks for those pictures alone again.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.core.files import remove_partials
from capwright.core.progress import Progress
from capwright.core.run_folder import claim, only_one
from capwright.corpus.index import corpus_digest, load_shard, shard_sizes
from capwright.corpus.sidecars import has_sidecar, read_sidecars, write_sidecar

FAILED = "failed: "
SHOW_EVERY_S = 0.2
Engine = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a stage runs; never part of its plan, since it does not change what is written."""

    engine: Engine = "local"
    """Processes of this machine, or the actors of a Ray cluster."""
    workers: int = 1
    """Processes or actors; each makes its own worker (its own captioner)."""
    gpus_per_worker: float = 0.0
    """GPUs that Ray gives each worker."""
    ray_address: str = ""
    """A Ray cluster to join, such as "auto"; empty starts Ray on this machine."""
    limit: int | None = None
    """Work on the first shards that hold so many pictures, whole shards; a later run goes on."""
    retry_failed: bool = False
    """Describe the pictures again that failed before."""
    max_failure_rate: float = 0.05
    """Share of failed pictures above which the stage stops."""

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise CapwrightError(f"engine is {self.engine!r}, but must be local or ray")
        if self.workers < 1:
            raise CapwrightError(f"workers is {self.workers}, but must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise CapwrightError(f"limit is {self.limit}, but must be at least 1 picture")
        if not 0 <= self.max_failure_rate <= 1:
            raise CapwrightError(
                f"max_failure_rate is {self.max_failure_rate}, but must be from 0 to 1: try 0.05"
            )
        if self.engine == "local" and (self.gpus_per_worker or self.ray_address):
            raise CapwrightError(
                "gpus_per_worker and ray_address are for Ray alone: choose the engine ray too"
            )


@dataclass
class ShardProgress:
    """What a worker did so far in its shard; `show` is told of it now and then."""

    show: "Callable[[ShardProgress], None] | None" = None
    pictures: int = 0
    captions: int = 0
    tokens: int = 0
    cost: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    shown_at: float = 0.0

    def advance(
        self, pictures: int = 0, captions: int = 0, tokens: int = 0, cost: float = 0.0
    ) -> None:
        """Count what was done; pictures include the failed ones."""
        self.pictures += pictures
        self.captions += captions
        self.tokens += tokens
        self.cost += cost
        now = time.monotonic()
        if self.show and now - self.shown_at >= SHOW_EVERY_S:
            self.shown_at = now
            self.show(self)

    def failed(self, reason: str) -> None:
        """Count a picture that failed."""
        self.failures[reason.removeprefix(FAILED)] += 1

    def add(self, other: "ShardProgress") -> None:
        """Count what was done elsewhere as well."""
        self.pictures += other.pictures
        self.captions += other.captions
        self.tokens += other.tokens
        self.cost += other.cost
        self.failures.update(other.failures)

    def counts(self) -> "ShardProgress":
        """A copy that can travel."""
        copy = ShardProgress()
        copy.add(self)
        return copy


Rows = list[dict[str, Any]]
CaptionShard = Callable[[pa.Table, ShardProgress], Rows]


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to finish shards, wherever it runs; it can be pickled."""

    work: Path
    folder: Path
    held_by: str
    make: Callable[[], CaptionShard]
    extra: tuple[pa.Field, ...] = ()

    def finish(self, worker: CaptionShard, shard: str, progress: ShardProgress) -> ShardProgress:
        """Write the shard's sidecar, or with one there repair the pictures that failed.

        Returns the shard's counts, taken from what was written: a worker need not call `progress`.
        """
        table = load_shard(self.work, shard)
        old: Rows = []
        if has_sidecar(self.folder, shard):
            old = read_sidecars(self.folder, [shard]).to_pylist()
            bad = {row["key"] for row in old if row["reason"].startswith(FAILED)}
            old = [row for row in old if row["key"] not in bad]
            table = table.filter(pc.is_in(table["key"], value_set=pa.array(bad, pa.string())))
        rows = worker(table, progress) if table.num_rows else []
        done = _counts(table.num_rows, rows, progress)
        if old:
            order = load_shard(self.work, shard, ["key"])["key"].to_pylist()
            place = {key: i for i, key in enumerate(order)}
            rows = sorted([*old, *rows], key=lambda row: place[row["key"]])
        write_sidecar(self.folder, shard, rows, self.extra)
        return done


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """What a caption stage left behind.

    Pictures, captions and reasons are those of all shards that are done. Tokens, cost and rates
    are this run's, the rates without the warm-up (until the first worker was ready).
    """

    stage: str
    pictures: int
    captions: int
    kept: int
    shards: int
    shards_reused: int
    shards_left: int
    reasons: dict[str, int]
    tokens: int
    cost: float
    seconds: float
    warm_up_seconds: float
    pictures_per_second: float
    captions_per_second: float
    tokens_per_second: float
    folder: str


def stage_folder(work: Path, stage: str) -> Path:
    """Where the sidecars of `stage` lie, for example `stage_folder(work, "describe-small")`."""
    return work / "captions" / stage


def shard_seed(seed: int, shard: str) -> int:
    """A seed that depends on the run's seed and the shard's name alone, below 2**48."""
    return int(digest([seed, shard]), 16)


def missing_shards(work: Path, folder: Path) -> list[str]:
    """Shards that the stage in `folder` has not finished."""
    return [shard for shard in shard_sizes(work) if not has_sidecar(folder, shard)]


def check_complete(work: Path, stage: str) -> None:
    """Raise CapwrightError unless `stage` has captions for every shard; reads no caption."""
    folder = stage_folder(work, stage)
    missing = missing_shards(work, folder)
    if missing:
        raise CapwrightError(
            f"{folder} has no captions for {', '.join(missing[:3])}: "
            "run the stage that writes them first"
        )


def run_stage(
    work: Path,
    folder: Path,
    plan: Mapping[str, Any],
    make: Callable[[], CaptionShard],
    running: Running | None = None,
    extra: Sequence[pa.Field] = (),
) -> StageSummary:
    """Write the missing sidecars of the stage in `folder`; see the module's docstring.

    `make` is called once in each process and must be picklable where there are several. Raises
    CapwrightError when `folder` was begun with another plan, another run writes to it, or too many
    pictures fail.
    """
    began = time.monotonic()
    running = running or Running()
    with only_one(folder) as who:
        claim(folder, {**plan, "corpus": corpus_digest(work)})
        remove_partials(folder)
        todo = _todo(work, folder, running)
        job = Job(
            work=work.absolute(),
            folder=folder.absolute(),
            held_by=who,
            make=make,
            extra=tuple(extra),
        )
        try:
            work_done = _work_off(job, todo, running)
        finally:
            remove_partials(folder)
        return _summary(work, folder, work_done, time.monotonic() - began)


def preview(work: Path, make: Callable[[], CaptionShard], pictures: int = 10) -> Rows:
    """The rows that the stage would write for the first pictures of the corpus; writes nothing."""
    rows: Rows = []
    worker = make()
    for shard in shard_sizes(work):
        table = load_shard(work, shard).slice(0, pictures)
        rows += worker(table, ShardProgress())
        pictures -= table.num_rows
        if pictures <= 0:
            break
    return rows


@dataclass(frozen=True)
class _Todo:
    """A shard to work on: the pictures to do, and those that are done well."""

    pictures: int
    fine: int = 0


def _todo(work: Path, folder: Path, running: Running) -> dict[str, _Todo]:
    todo: dict[str, _Todo] = {}
    before = 0
    for shard, size in shard_sizes(work).items():
        if running.limit is not None and before >= running.limit:
            break
        before += size
        if not has_sidecar(folder, shard):
            todo[shard] = _Todo(size)
        elif running.retry_failed:
            reasons = read_sidecars(folder, [shard], ["key", "reason"])
            bad = reasons.filter(pc.starts_with(reasons["reason"], FAILED))
            if bad.num_rows:
                pictures = pc.count_distinct(bad["key"]).as_py()
                todo[shard] = _Todo(pictures, fine=size - pictures)
    return todo


@dataclass(frozen=True)
class _Done:
    """What this run did."""

    counts: ShardProgress = field(default_factory=ShardProgress)
    shards: int = 0
    warm_up_s: float = 0.0
    seconds: float = 0.0


def _work_off(job: Job, todo: Mapping[str, _Todo], running: Running) -> _Done:
    if not todo:
        return _Done()
    from capwright.captions import engines
    from capwright.captions.tally import Tally

    failures = Failures(
        "pictures",
        running.max_failure_rate,
        seen=sum(shard.fine for shard in todo.values()),
        advice="repair the cause and run again with retry_failed, or raise max_failure_rate",
    )
    pictures = sum(shard.pictures for shard in todo.values())
    with Progress(job.folder.name, pictures, "pictures") as line:
        tally = Tally(line, failures)
        engines.work_off(job, list(todo), running, tally)
    failures.check()
    return _Done(tally.total, len(todo), tally.warm_up_s, tally.seconds)


def _counts(pictures: int, rows: Rows, progress: ShardProgress) -> ShardProgress:
    bad = [row for row in rows if row.get("reason", "").startswith(FAILED)]
    reasons = {row["key"]: row["reason"].removeprefix(FAILED) for row in bad}
    return ShardProgress(
        pictures=pictures,
        captions=sum(bool(row["text"]) for row in rows),
        tokens=progress.tokens,
        cost=progress.cost,
        failures=Counter(reasons.values()),
    )


def _summary(work: Path, folder: Path, done: _Done, seconds: float) -> StageSummary:
    sizes = shard_sizes(work)
    finished = [shard for shard in sizes if has_sidecar(folder, shard)]
    captions = kept = 0
    reasons: Counter[str] = Counter()
    for shard in finished:
        table = read_sidecars(folder, [shard], ["keep", "reason"])
        captions += table.num_rows
        kept += int(pc.sum(table["keep"]).as_py() or 0)
        for count in pc.value_counts(table["reason"]).to_pylist():
            reasons[count["values"]] += count["counts"]
    reasons.pop("", None)
    counts, working = done.counts, max(done.seconds, 1e-9)
    return StageSummary(
        stage=folder.name,
        pictures=sum(sizes[shard] for shard in finished),
        captions=captions,
        kept=kept,
        shards=len(sizes),
        shards_reused=len(finished) - done.shards,
        shards_left=len(sizes) - len(finished),
        reasons=dict(reasons.most_common()),
        tokens=counts.tokens,
        cost=round(counts.cost, 6),
        seconds=round(seconds, 3),
        warm_up_seconds=round(done.warm_up_s, 3),
        pictures_per_second=round(counts.pictures / working, 3),
        captions_per_second=round(counts.captions / working, 3),
        tokens_per_second=round(counts.tokens / working, 3),
        folder=str(folder),
    )
