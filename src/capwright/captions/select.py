"""Which captions a picture keeps: keep, replace or drop, each with a reason that is counted.

Reads: the sidecars of a score stage (one row per candidate: source, text, score in 0..1; see
`captions/score`). Writes: WORK/captions/select/SHARD.parquet, every candidate as one row with
source `select`, the candidate's own source in `prompt`, `keep` and the reason, and manifest.json.
Run: `capwright select CORPUS --work WORK`.

Rules, per picture: human captions stay. Of the others the best score wins if it reaches
`min_score`; up to `keep_top` different captions are kept. The first kept row carries the decision:
"kept" where it is the alt text, "replaced" where it is another caption, "dropped" where nothing
was good enough, so that the decisions add up to the number of pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from capwright.captions.runner import StageSummary, run_stage, stage_folder
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index, shard_names
from capwright.corpus.sidecars import read_sidecars

ALT, HUMAN, SOURCE = "alt", "human", "select"


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which candidates are good enough, and how many of them a picture keeps."""

    work: Path
    """The work folder, which holds the index and the scores."""
    score_stage: str = "score-clip"
    """The stage whose sidecars hold the candidates and their scores."""
    min_score: float = 0.2
    """Candidates below this score (0..1, calibrated against shuffled pairs) are not kept."""
    keep_top: int = 2
    """The most captions that one picture keeps, human ones not counted."""
    sources: tuple[str, ...] = ()
    """Sources that may be kept, such as "alt" or "describe-small"; empty allows all."""
    preference: dict[str, float] = field(default_factory=lambda: {"fuse-rules": 0.3})
    """Added to the score of a source when candidates are ranked, never to the threshold: the fused
    caption says more than short alt text that scores a little higher."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise CapwrightError(
                f"min_score is {self.min_score}, but scores lie between 0 and 1: try 0.2"
            )
        if self.keep_top < 1:
            raise CapwrightError(f"keep_top is {self.keep_top}, but must be at least 1: try 2")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One scored caption of a picture."""

    source: str
    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What happens to one candidate; the first choice of a picture carries its decision."""

    candidate: Candidate
    keep: bool
    reason: str


def run(config: SelectConfig) -> StageSummary:
    """Decide for every shard that has no decision yet."""
    index = load_index(config.work)
    scores = stage_folder(config.work, config.score_stage)
    read_sidecars(scores, shard_names(index))  # one error for all missing shards, before any work

    def select_shard(table: pa.Table) -> list[dict[str, Any]]:
        shard = table["shard"][0].as_py()
        return _select_rows(read_sidecars(scores, [shard]), table["key"].to_pylist(), config)

    plan = as_dict(config)
    del plan["work"]
    return run_stage(index, stage_folder(config.work, "select"), plan, select_shard)


def choose(candidates: Sequence[Candidate], config: SelectConfig) -> list[Choice]:
    """Decide for one picture: kept captions first, best first, then the rest with their reasons."""
    humans = [c for c in candidates if c.source == HUMAN and c.text]
    others = [c for c in candidates if c.source != HUMAN]
    allowed = [c for c in others if not config.sources or c.source in config.sources]
    ranked = sorted(allowed, key=lambda c: -(c.score + config.preference.get(c.source, 0.0)))
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
    decision = _decision(humans, good, candidates, config)
    first = kept or left[:1] or [_nothing()]
    head = Choice(candidate=first[0].candidate, keep=bool(kept), reason=decision)
    return [head, *kept[1:], *(left if kept else left[1:])]


def _decision(
    humans: Sequence[Candidate],
    good: Sequence[Candidate],
    candidates: Sequence[Candidate],
    config: SelectConfig,
) -> str:
    if humans:
        return "kept human: written by a person"
    if not good:
        return f"dropped: nothing above {config.min_score:g}"
    if good[0].source == ALT:
        return "kept alt: best score"
    alt = next((c for c in candidates if c.source == ALT and c.text), None)
    if alt is None:
        return "replaced: no alt text"
    if alt.score < config.min_score:
        return "replaced: alt junk"
    return f"replaced: {good[0].source} scores higher"


def _why_not(candidate: Candidate, said: set[str], kept: int, config: SelectConfig) -> str:
    if not candidate.text:
        return "left: empty"
    if candidate.score < config.min_score:
        return f"left: below {config.min_score:g}"
    if _plain(candidate.text) in said:
        return "left: says the same"
    return "left: better ones kept" if kept >= config.keep_top else ""


def _nothing() -> Choice:
    return Choice(candidate=Candidate(source="", text="", score=0.0), keep=False, reason="")


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _select_rows(scored: pa.Table, keys: list[str], config: SelectConfig) -> list[dict[str, Any]]:
    columns = (scored[name].to_pylist() for name in ("key", "source", "text"))
    scores = pc.fill_null(scored["score"], 0.0).to_pylist()
    rows = list(zip(*columns, scores, strict=True))
    by_key = {
        key: [Candidate(source=s, text=t, score=v) for _, s, t, v in group]
        for key, group in groupby(sorted(rows, key=lambda row: row[0]), key=lambda row: row[0])
    }
    return [
        {
            "key": key,
            "source": SOURCE,
            "text": choice.candidate.text,
            "prompt": choice.candidate.source,
            "score": choice.candidate.score,
            "keep": choice.keep,
            "reason": choice.reason,
        }
        for key in keys
        for choice in choose(by_key.get(key, []), config)
    ]
