"""Which captions a picture keeps: keep, replace or drop, each with a reason that is counted.

Reads: the index, the sidecars of the score stages (one row per candidate; see `columns.py` for
their columns), those of `dedup` where it ran, a DataComp subset. Writes:
WORK/captions/select/SHARD.parquet, every candidate as one row with source `select`, the
candidate's own source in `prompt`, its score, `keep` and the reason, and manifest.json.
Run: `capwright select CORPUS --work WORK [--rule "junk: junk <> ''"] [--subset OUT.npy]`.

What goes first: pictures outside the subset, pictures that `dedup` dropped, pictures and captions
that a rule drops ("dropped: NAME"; see `rules.py`). Then, per picture: human captions stay. Of the
others the best score wins if it reaches `min_score`; up to `keep_top` different captions are kept.
The first row of a picture carries the decision: "kept" where it is the alt text, "replaced" where
it is another caption, "dropped" where nothing was good enough, so that the decisions add up to the
number of pictures. Nothing is deleted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from capwright.captions import columns, rules, subset
from capwright.captions.candidates import ALT, HUMAN, caption_stages
from capwright.captions.rules import Rule
from capwright.captions.runner import (
    CaptionShard,
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    check_complete,
    preview,
    run_stage,
    stage_folder,
)
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.files import read_json

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SOURCE = "select"
DUPLICATES = (
    Rule(name="in the evaluation set", drop="kind = 'evaluation'", scope="picture"),
    Rule(name="duplicate", drop="NOT keep", scope="picture"),
)
OUTSIDE = "not in the subset"


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which candidates are good enough, and how many of them a picture keeps."""

    work: Path
    """The work folder, which holds the index and the scores."""
    rank: str = "clip"
    """The score by which candidates are ranked: a column or an SQL expression over the columns,
    such as "0.7 * clip + 0.3 * concepts"; empty ranks by `preference` alone and needs no score."""
    min_score: float = 0.2
    """Candidates below this score (0..1, calibrated against shuffled pairs) are not kept."""
    keep_top: int = 2
    """The most captions that one picture keeps, human ones not counted."""
    sources: tuple[str, ...] = ()
    """Sources that may be kept, such as "alt" or "describe-small"; empty allows all."""
    preference: dict[str, float] = field(default_factory=lambda: {"fuse-rules": 0.3})
    """Added to the score of a source when candidates are ranked, never to the threshold: the fused
    caption says more than short alt text that scores a little higher."""
    rules: tuple[Rule, ...] = ()
    """What drops captions and pictures first, human captions as well; the first rule counts."""
    drop_duplicates: bool = True
    """Drop the pictures that the stage `dedup` did not keep, where it ran."""
    human_field: str = "human_caption"
    """Field of a sample's .json that holds a caption by a person; read where nothing is scored."""
    only_uids: Path | None = None
    """A DataComp subset (.npy); pictures outside it are dropped."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise CapwrightError(
                f"min_score is {self.min_score}, but scores lie between 0 and 1: try 0.2"
            )
        if self.keep_top < 1:
            raise CapwrightError(f"keep_top is {self.keep_top}, but must be at least 1: try 2")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One caption of a picture, its score and the rule that drops it, if one does."""

    source: str
    text: str
    score: float | None
    dropped: str = ""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What happens to one candidate; the first choice of a picture carries its decision."""

    candidate: Candidate
    keep: bool
    reason: str


NOTHING = Candidate(source="", text="", score=0.0)


def run(config: SelectConfig, running: Running | None = None) -> StageSummary:
    """Decide for every shard that has no decision yet.

    Raises CapwrightError for a rule that cannot be used before the stage's folder is begun.
    """
    running = running or Running()
    make, plan = _prepare(config, complete=running.limit is None)
    preview(config.work, make, 1)
    return run_stage(config.work, stage_folder(config.work, SOURCE), plan, make, running)


def dry_run(config: SelectConfig, pictures: int) -> Rows:
    """The rows of the first pictures; writes nothing."""
    make, _ = _prepare(config, complete=False)
    return preview(config.work, make, pictures)


def _prepare(
    config: SelectConfig, complete: bool
) -> tuple[Callable[[], CaptionShard], dict[str, Any]]:
    """The worker's maker and the plan; one error for all that is missing, before any work."""
    stages = columns.score_stages(config.work)
    if config.rank in ("clip", "concepts") and columns.SCORE + config.rank not in stages:
        check_complete(config.work, columns.SCORE + config.rank)
    used = [*stages] or [*caption_stages(config.work, complete=False)]
    if config.drop_duplicates and stage_folder(config.work, columns.DEDUP).is_dir():
        used.append(columns.DEDUP)
    for stage in used if complete else []:
        check_complete(config.work, stage)
    plan = {**as_dict(config), "stages": {stage: _plan_of(config.work, stage) for stage in used}}
    del plan["work"]
    if config.only_uids:
        subset.read_subset(config.only_uids)
    return partial(_worker, config, tuple(stages)), plan


def _plan_of(work: Path, stage: str) -> str:
    """Digest of the plan of a stage, "" where it has no manifest."""
    manifest = stage_folder(work, stage) / "manifest.json"
    return str(read_json(manifest).get("digest", "")) if manifest.exists() else ""


def _worker(config: SelectConfig, stages: tuple[str, ...]) -> CaptionShard:
    uids = subset.read_subset(config.only_uids) if config.only_uids else None

    def select_shard(table: pa.Table, progress: ShardProgress) -> Rows:
        shard = table["shard"][0].as_py()
        with columns.open_shard(config.work, shard, stages, config.human_field) as connection:
            dropped = _dropped_pictures(connection, config, uids)
            candidates = _candidates(connection, config)
        rows: Rows = []
        for key in table["key"].to_pylist():
            found = candidates.get(key, [])
            choices = _drop(found, dropped[key]) if dropped[key] else choose(found, config)
            rows += [_row(key, choice) for choice in choices]
        progress.advance(pictures=table.num_rows, captions=len(rows))
        return rows

    return select_shard


def _dropped_pictures(
    connection: "DuckDBPyConnection", config: SelectConfig, uids: subset.Uids | None
) -> dict[str, str]:
    """Key to the name of what drops the whole picture, "" where nothing does."""
    all_rules = config.rules
    if config.drop_duplicates and "keep" in columns.columns_of(connection, "pictures"):
        all_rules = (*DUPLICATES, *all_rules)
    names = rules.first_to_drop(connection, all_rules, "picture")
    found = connection.execute("SELECT key, uid FROM pictures ORDER BY rowid").fetchnumpy()
    if uids is not None:
        inside = subset.is_in(found["uid"].tolist(), uids)
        names = [name if ok else OUTSIDE for name, ok in zip(names, inside, strict=True)]
    return dict(zip(found["key"].tolist(), names, strict=True))


def _candidates(
    connection: "DuckDBPyConnection", config: SelectConfig
) -> Mapping[str, list[Candidate]]:
    """Key to candidates, in the order of their stage."""
    dropped = rules.first_to_drop(connection, config.rules, "caption")
    query = "SELECT key, source, text FROM captions ORDER BY rowid"
    rows = connection.execute(query).fetchall()
    scores: list[float | None] = [None] * len(rows)
    if config.rank:
        rank = f"CAST(({config.rank}\n) AS DOUBLE)"
        values = rules.evaluate(connection, "captions", rank, f"rank {config.rank!r}", "DOUBLE")
        scores = np.ma.masked_invalid(values).tolist()
    found: dict[str, list[Candidate]] = {}
    for (key, source, text), score, name in zip(rows, scores, dropped, strict=True):
        candidate = Candidate(source=source, text=text, score=score, dropped=name)
        found.setdefault(key, []).append(candidate)
    return found


def choose(candidates: Sequence[Candidate], config: SelectConfig) -> list[Choice]:
    """Decide for one picture: kept captions first, best first, then the rest with their reasons."""
    humans = [c for c in candidates if c.source == HUMAN and c.text and not c.dropped]
    others = [c for c in candidates if c not in humans]
    allowed = [c for c in others if not config.sources or c.source in config.sources]
    ranked = sorted(allowed, key=lambda c: -(_score(c) + config.preference.get(c.source, 0.0)))
    good: list[Candidate] = []
    left: list[Choice] = []
    said = {_plain(c.text) for c in humans}
    for candidate in ranked:
        reason = _why_not(candidate, said, len(good), config)
        if reason:
            left.append(Choice(candidate=candidate, keep=False, reason=reason))
        else:
            good.append(candidate)
            said.add(_plain(candidate.text))
    forbidden = [c for c in others if c not in allowed]
    left += [
        Choice(candidate=c, keep=False, reason="left: source not asked for") for c in forbidden
    ]
    kept = [Choice(candidate=c, keep=True, reason="kept too: human caption") for c in humans]
    kept += [Choice(candidate=c, keep=True, reason="kept too: next best score") for c in good]
    if kept:
        decision = _why_kept(humans, good, candidates, config)
        return [Choice(candidate=kept[0].candidate, keep=True, reason=decision), *kept[1:], *left]
    return _nothing_kept(left, config)


def _nothing_kept(left: Sequence[Choice], config: SelectConfig) -> list[Choice]:
    """What was left, the picture's decision first: a rule's where rules left nothing over."""
    reason = f"dropped: nothing above {config.min_score:g}"
    texts = [choice.candidate for choice in left if choice.candidate.text]
    if texts and all(candidate.dropped for candidate in texts):
        reason = f"dropped: {texts[0].dropped}"
    first = left[0].candidate if left else NOTHING
    return [Choice(candidate=first, keep=False, reason=reason), *left[1:]]


def _drop(candidates: Sequence[Candidate], name: str) -> list[Choice]:
    """Drop a picture with all its candidates."""
    head, *rest = candidates or [NOTHING]
    return [
        Choice(candidate=head, keep=False, reason=f"dropped: {name}"),
        *(Choice(candidate=c, keep=False, reason="left: picture dropped") for c in rest),
    ]


def _why_kept(
    humans: Sequence[Candidate],
    good: Sequence[Candidate],
    candidates: Sequence[Candidate],
    config: SelectConfig,
) -> str:
    if humans:
        return "kept human: written by a person"
    if good[0].source == ALT:
        return "kept alt: best score"
    alt = next((c for c in candidates if c.source == ALT and c.text), None)
    if alt is None:
        return "replaced: no alt text"
    if alt.dropped:
        return f"replaced: alt {alt.dropped}"
    if config.rank and _score(alt) < config.min_score:
        return "replaced: alt junk"
    return f"replaced: {good[0].source} scores higher"


def _why_not(candidate: Candidate, said: set[str], kept: int, config: SelectConfig) -> str:
    if not candidate.text:
        return "left: empty"
    if candidate.dropped:
        return f"dropped: {candidate.dropped}"
    if config.rank and _score(candidate) < config.min_score:
        return f"left: below {config.min_score:g}"
    if _plain(candidate.text) in said:
        return "left: says the same"
    return "left: better ones kept" if kept >= config.keep_top else ""


def _score(candidate: Candidate) -> float:
    """The score by which it is ranked; one without a score comes last."""
    return candidate.score or 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _row(key: str, choice: Choice) -> dict[str, Any]:
    return {
        "key": key,
        "source": SOURCE,
        "text": choice.candidate.text,
        "prompt": choice.candidate.source,
        "score": choice.candidate.score,
        "keep": choice.keep,
        "reason": choice.reason,
    }
