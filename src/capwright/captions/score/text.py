"""Scores every candidate caption by its words alone: no model, no picture.

Reads: the index (alt text, captions by people) and the sidecars of describe and fuse. Writes:
WORK/captions/score-text/SHARD.parquet, one row a candidate, and WORK/models/text-frequencies.
Run: `capwright score CORPUS --work WORK --with text`.

Columns beside the score:
  tokens              of CLIP's byte-pair code, start and end not counted; more than 75 are cut at
                      its context of 77 (`tokens.py`)
  language            ISO 639 code by py3langid; "und" for junk and where it is unsure
  junk                what kind of junk it is, "" for none (`junk.py`); also "boilerplate" where
                      the corpus's frequencies say so
  boilerplate         share of the words in phrases that the corpus repeats (`frequencies.py`)
  repeated            share of repeated n-grams, of 10 characters or 5 words, the larger of both
  specificity         how much the words narrow down which picture it is (`frequencies.py`)
  words, special_characters, alphanumeric
                      their number, and shares of the characters (`measures.py`)

The score is 0 for junk and (1 - boilerplate) (1 - repeated) (1 + specificity) / 2 for the rest: a
clean text has 0.5 or more, by how specific it is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from capwright.captions.candidates import candidates, caption_stages
from capwright.captions.runner import (
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    preview,
    run_stage,
    shard_seed,
    stage_folder,
)
from capwright.captions.score import frequencies, junk
from capwright.captions.score.frequencies import Frequencies
from capwright.captions.score.measures import ALNUM, SPECIAL, Texts
from capwright.captions.score.tokens import count_tokens
from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.corpus.index import corpus_digest, load_shard, shard_sizes

STAGE = "score-text"
BATCH = 4096  # texts
UNKNOWN, NO_LANGUAGE = "und", "zxx"
MIN_LETTERS, MIN_CONFIDENCE = 3, 0.25  # for a language
ALL_BOILERPLATE = 0.8  # share from which a text is junk
INDEX_COLUMNS = ["key", "shard", "text", "more_texts", "json"]
EXTRA = (
    pa.field("tokens", pa.int32()),
    pa.field("language", pa.string()),
    pa.field("junk", pa.string()),
    pa.field("boilerplate", pa.float32()),
    pa.field("repeated", pa.float32()),
    pa.field("specificity", pa.float32()),
    pa.field("words", pa.int32()),
    pa.field("special_characters", pa.float32()),
    pa.field("alphanumeric", pa.float32()),
)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Which texts are measured, and what counts as often."""

    work: Path
    """The work folder, which holds the index and the captions."""
    stages: tuple[str, ...] = ()
    """Stages whose captions are scored beside the alt text; empty takes those that are there."""
    human_field: str = "human_caption"
    """Field of a sample's .json that holds a caption by a person."""
    sample: int = 1_000_000
    """Pictures whose texts are counted for the corpus's frequencies."""
    boilerplate_pictures: int = 10
    """A phrase is boilerplate from so many pictures up,"""
    boilerplate_share: float = 1e-4
    """and from this share of them up."""

    def __post_init__(self) -> None:
        for name in ("sample", "boilerplate_pictures"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 <= self.boilerplate_share <= 1:
            raise CapwrightError(
                f"boilerplate_share is {self.boilerplate_share}, but must be from 0 to 1: try 1e-4"
            )


def run(config: ScoreConfig, running: Running | None = None) -> StageSummary:
    """Score every shard that has no scores yet."""
    running = running or Running()
    stages = caption_stages(config.work, config.stages, complete=running.limit is None)
    folder = prepare(config, stages)
    plan = {**as_dict(config), "stages": stages}
    del plan["work"]
    make = partial(TextScorer, config, tuple(stages), folder)
    return run_stage(config.work, stage_folder(config.work, STAGE), plan, make, running, EXTRA)


def dry_run(config: ScoreConfig, pictures: int = 10) -> Rows:
    """What the first pictures' candidates would be given; writes no scores."""
    stages = caption_stages(config.work, config.stages, complete=False)
    make = partial(TextScorer, config, tuple(stages), prepare(config, stages))
    return preview(config.work, make, pictures)


def prepare(config: ScoreConfig, stages: dict[str, str]) -> Path:
    """Count the corpus's words and phrases, where that was not done; returns their folder."""
    counted = [stages, config.human_field, config.sample, corpus_digest(config.work)]
    least = [config.boilerplate_pictures, config.boilerplate_share]
    folder = config.work / "models" / "text-frequencies" / digest([*counted, *least])
    if not (folder / frequencies.FILE).exists():
        documents = _documents(config, stages)
        found = frequencies.count(documents, config.boilerplate_pictures, config.boilerplate_share)
        frequencies.save(folder, found)
    return folder


class TextScorer:
    """Scores the candidates of a shard."""

    def __init__(self, config: ScoreConfig, stages: Sequence[str], folder: Path) -> None:
        self.config, self.stages = config, stages
        self.frequencies = frequencies.load(folder)

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        """A row for each candidate."""
        config = self.config
        found = candidates(config.work, self.stages, table, config.human_field)
        texts = list(dict.fromkeys(one.text for row in found.values() for one in row))
        measured: dict[str, dict[str, Any]] = {}
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            columns = measure(some, self.frequencies)
            values = zip(*columns.values(), strict=True)
            for text, row in zip(some, values, strict=True):
                measured[text] = dict(zip(columns, row, strict=True))
        progress.advance(pictures=len(found), captions=sum(map(len, found.values())))
        return [
            {"key": key, "source": one.source, "text": one.text, **measured[one.text]}
            for key, row in found.items()
            for one in row
        ]


def measure(texts: Sequence[str], known: Frequencies) -> dict[str, list[Any]]:
    """All columns of some texts, the score among them."""
    batch = Texts(texts)
    boilerplate = known.boilerplate(batch)
    kinds = junk.junk_kinds(texts, batch)
    for i in np.flatnonzero(boilerplate >= ALL_BOILERPLATE).tolist():
        kinds[i] = kinds[i] or junk.BOILERPLATE
    repeated = np.maximum(batch.character_repetition(), batch.word_repetition())
    specificity = known.specificity(batch)
    clean = np.array([not kind for kind in kinds], np.bool_)
    score = clean * (1 - boilerplate) * (1 - repeated) * (1 + specificity) / 2
    return {
        "score": score.tolist(),
        "tokens": count_tokens(texts),
        "language": [
            UNKNOWN if kind else language_of(t) for t, kind in zip(texts, kinds, strict=True)
        ],
        "junk": kinds,
        "boilerplate": boilerplate.tolist(),
        "repeated": repeated.tolist(),
        "specificity": specificity.tolist(),
        "words": batch.word_count_T.tolist(),
        "special_characters": batch.share(SPECIAL).tolist(),
        "alphanumeric": batch.share(ALNUM).tolist(),
    }


def language_of(text: str) -> str:
    """ISO 639 code, or "und" where a text has few letters or py3langid is not sure."""
    if len(text) < MIN_LETTERS:
        return UNKNOWN
    code, confidence = _identifier().classify(text)
    sure = confidence >= MIN_CONFIDENCE and code != NO_LANGUAGE
    return str(code) if sure else UNKNOWN


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _documents(config: ScoreConfig, stages: dict[str, str]) -> Iterator[list[list[str]]]:
    """The texts of the corpus's pictures, or of a sample from every shard, in chunks."""
    sizes = shard_sizes(config.work)
    share = min(1.0, config.sample / max(1, sum(sizes.values())))
    with Progress("text frequencies", len(sizes), "shards") as progress:
        for shard, size in sizes.items():
            table = load_shard(config.work, shard, INDEX_COLUMNS)
            if share < 1:
                rng = np.random.default_rng(shard_seed(0, shard))
                table = table.take(np.sort(rng.permutation(size)[: math.ceil(share * size)]))
            found = candidates(config.work, stages, table, config.human_field)
            pictures = ([one.text for one in row] for row in found.values())
            yield from frequencies.chunks(pictures, BATCH)
            progress.advance()
