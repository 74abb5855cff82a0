"""Scores every candidate caption by the things that it names: are they there, and are they all?

Reads: the index, the sidecars of describe and fuse, the lexicon (`captions/lexicon.py`), and
pictures or their feature maps. Writes: WORK/captions/score-concepts/SHARD.parquet, one row a
candidate (`candidates.py`); the lexicon and WORK/models/clip-tower where they are missing.
Run: `capwright score CORPUS --work WORK --with concepts [--model MODEL]`.

Every name in a picture's candidates is put to the judge (`judge.py`): the bare name for the
embedded tower, "a photo of a NAME" for a model of open_clip. A name counts as seen from the score
`supported` up. Then, as for detections,

    precision = names of the caption that are seen / names of the caption
    recall    = names seen that the caption says   / names seen, of all candidates
    score     = their harmonic mean (F1)

A caption with "Tamworth pig" says "pig" as well. Precision is null for a caption without names,
recall where nothing is seen, and the score where either is null, but 0 where the caption names
things and none of them is seen.

Columns beside the score: `concept_precision`, `concept_recall`, and the caption's names in two
lists, `seen_concepts` and `unseen_concepts`; the latter are what it makes up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa

from capwright.captions.candidates import Candidate, candidates, caption_stages
from capwright.captions.lexicon import Lexicon, LexiconConfig, corpus_lexicon
from capwright.captions.runner import (
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    missing_shards,
    preview,
    run_stage,
    stage_folder,
)
from capwright.captions.score.judge import Judge, JudgeConfig, make_judge, plan_of, prepare
from capwright.core.errors import CapwrightError

STAGE = "score-concepts"
EXTRA = (
    pa.field("concept_precision", pa.float32()),
    pa.field("concept_recall", pa.float32()),
    pa.field("seen_concepts", pa.list_(pa.string())),
    pa.field("unseen_concepts", pa.list_(pa.string())),
)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(JudgeConfig):
    """Which names are looked for, and when one counts as seen."""

    stages: tuple[str, ...] = ()
    """Stages whose captions are scored beside the alt text; empty takes those that are there."""
    supported: float = 0.9
    """A name with this score (0..1, calibrated against other pictures) is in the picture."""
    lexicon_stage: str = ""
    """The stage whose sentences show which words are names, where no person wrote captions; empty
    takes the first description."""
    lexicon: LexiconConfig = field(default_factory=LexiconConfig)
    """Which names there are; WordNet's are left to models of open_clip unless asked for, since the
    embedded tower knows the corpus's own words alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.supported <= 1:
            raise CapwrightError(
                f"supported is {self.supported}, but scores lie between 0 and 1: try 0.9"
            )


def run(config: ScoreConfig, running: Running | None = None) -> StageSummary:
    """Score every shard that has no scores yet."""
    running = running or Running()
    stages = caption_stages(config.work, config.stages, complete=running.limit is None)
    folder = stage_folder(config.work, STAGE)
    if missing_shards(config.work, folder):
        prepare(config)
        lexicon_of(config, stages)
    plan = {**plan_of(config), "stages": stages}
    make = partial(ConceptScorer, config, tuple(stages))
    return run_stage(config.work, folder, plan, make, running, EXTRA)


def dry_run(config: ScoreConfig, pictures: int = 10) -> Rows:
    """What the first pictures' candidates would be given; writes no scores."""
    stages = caption_stages(config.work, config.stages, complete=False)
    return preview(config.work, partial(ConceptScorer, config, tuple(stages)), pictures)


def lexicon_of(config: ScoreConfig, stages: Iterable[str]) -> Lexicon:
    """The corpus's names; built where it is not saved yet."""
    chosen = config.lexicon
    if chosen.wordnet is None:
        chosen = replace(chosen, wordnet=bool(config.model))
    described = (stage for stage in stages if stage.startswith("describe"))
    sentences = config.lexicon_stage or next(described, "")
    return corpus_lexicon(config.work, sentences, config.human_field, chosen)


class ConceptScorer:
    """Scores the candidates of a shard."""

    def __init__(self, config: ScoreConfig, stages: Sequence[str]) -> None:
        self.config, self.stages = config, stages
        self.lexicon = lexicon_of(config, stages)
        self.judge: Judge = make_judge(config)

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        """A row for each candidate."""
        config = self.config
        found = candidates(config.work, self.stages, table, config.human_field)
        named = [[self.lexicon.names_in(one.text) for one in row] for row in found.values()]
        pooled = [list(dict.fromkeys(name for names in row for name in names)) for row in named]
        asked = [[self.judge.naming.format(name) for name in names] for names in pooled]
        judged = self.judge.judge_shard(table, asked)
        rows: Rows = []
        for (key, row), lists, names, said in zip(
            found.items(), named, pooled, judged, strict=True
        ):
            support = {name: one.score for name, one in zip(names, said, strict=True)}
            reason = next((one.reason for one in said if one.reason), "")
            for one, its_names in zip(row, lists, strict=True):
                rows.append(self._row(key, one, its_names, support, reason))
        progress.advance(pictures=len(found), captions=len(rows))
        return rows

    def _row(
        self,
        key: str,
        one: Candidate,
        names: list[str],
        support: Mapping[str, float],
        reason: str,
    ) -> dict[str, Any]:
        row = {
            "key": key,
            "source": one.source,
            "text": one.text,
            "model": self.judge.name,
            "revision": self.judge.revision,
        }
        if reason:
            return {**row, "keep": False, "reason": reason}
        seen = [name for name, score in support.items() if score >= self.config.supported]
        precision, recall, f1 = agreement(names, seen)
        return {
            **row,
            "score": f1,
            "concept_precision": precision,
            "concept_recall": recall,
            "seen_concepts": [name for name in names if name in seen],
            "unseen_concepts": [name for name in names if name not in seen],
        }


def agreement(
    names: Sequence[str], seen: Sequence[str]
) -> tuple[float | None, float | None, float | None]:
    """Precision, recall and F1 of a caption's names against those that are seen."""
    right = sum(name in seen for name in names)
    precision = right / len(names) if names else None
    said = sum(any(_says(name, other) for name in names) for other in seen)
    recall = said / len(seen) if seen else None
    if precision == 0:
        return precision, recall, 0.0
    if precision is None or recall is None:
        return precision, recall, None
    return precision, recall, 2 * precision * recall / (precision + recall)


def _says(name: str, other: str) -> bool:
    """ "Tamworth pig" says "pig"."""
    return name == other or name.endswith(" " + other)
