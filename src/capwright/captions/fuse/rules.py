"""One caption from alt text and description, by rules: nothing is said that neither of them said.

Reads: the index, the sidecars of describe, the lexicon (built when it is missing, see
`captions/lexicon.py`) and, with a judge, cached feature maps and the embedded score tower (trained
when it is missing, see `captions/score`). Writes: WORK/captions/fuse-rules/SHARD.parquet, one row a
picture with the reason, and manifest.json.
Run: `capwright fuse CORPUS --work WORK --with rules [--set judge=none]`.

First, clauses of the description that name again what was named, or something that the picture
does not support, are left out. The description gives order and grammar, the alt text specific
names. Its clutter never survives; its names are those of the corpus's lexicon, and one counts as
supported when its score for the picture (`captions/score/calibration.py`) reaches a threshold.
Then, for each:

1. the description says it: nothing to do ("alt agrees");
2. the description says it less exactly ("pig" for "Tamworth pig"): the exact name takes its place
   ("alt specifies");
3. the description names something else that the picture supports less than `doubtful`: the alt
   text's name takes its place ("alt corrects");
4. otherwise it is added at the end ("alt adds").

A name that is not supported is left out ("alt not supported"), as is alt text without names
("alt junk"). Without a description, the alt text's supported names with their articles are all.

With `judge` "none" no model takes part and no picture is read: the description is trusted as it is,
and each of the alt text's names has the score `alt_support`. At its default that is enough for rule
2 and for no other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from capwright.captions.fuse.claims import claims
from capwright.captions.lexicon import (
    DETERMINERS,
    Lexicon,
    LexiconConfig,
    Span,
    corpus_lexicon,
    split_words,
)
from capwright.captions.runner import (
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    check_complete,
    preview,
    run_stage,
    stage_folder,
)
from capwright.captions.score.tower import TowerConfig
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.corpus.sidecars import read_sidecars

SOURCE = "fuse-rules"
AGREES, JUNK, NO_ALT = "alt agrees", "alt junk", "no alt text"
NO_DESCRIPTION = "no description"


@dataclass(frozen=True, kw_only=True)
class FuseConfig:
    """When a name counts as supported."""

    work: Path
    """The work folder, which holds the index and the descriptions."""
    describe_stage: str = "describe-small"
    """The stage whose first caption of each picture is the description."""
    judge: Literal["tower", "none"] = "tower"
    """Who says what a picture shows: the embedded score tower, or no one."""
    alt_support: float = 0.85
    """Without a judge, the score of every name of the alt text."""
    supported: float = 0.95
    """A name of the alt text with this score (0..1) is in the picture."""
    specific: float = 0.8
    """The same where the description already says it less exactly."""
    doubtful: float = 0.7
    """A name of the description with a lower score may be replaced by a supported one."""
    unsupported: float = 0.5
    """Clauses after the first about a name with a lower score are left out of the description."""
    human_field: str = "human_caption"
    """Field of a sample's .json that holds a caption by a person."""
    picture_size: int = 128
    """Side in pixels at which the embedded trunk sees pictures; a multiple of 32."""
    tower: TowerConfig = field(default_factory=TowerConfig)
    lexicon: LexiconConfig = field(default_factory=LexiconConfig)

    def __post_init__(self) -> None:
        if self.judge not in ("tower", "none"):
            raise CapwrightError(f"judge is {self.judge!r}, but must be tower or none")
        for name in ("alt_support", "supported", "specific", "doubtful", "unsupported"):
            if not 0 <= getattr(self, name) <= 1:
                raise CapwrightError(
                    f"{name} is {getattr(self, name)}, but scores lie between 0 and 1: try 0.9"
                )


@dataclass(frozen=True, kw_only=True)
class Fused:
    """The fused caption and why it reads so."""

    text: str
    reason: str


def run(config: FuseConfig, running: Running | None = None) -> StageSummary:
    """Fuse every shard that has no fused captions yet."""
    prepare(config)
    plan = as_dict(config)
    del plan["work"]
    folder = stage_folder(config.work, SOURCE)
    return run_stage(config.work, folder, plan, partial(Fuser, config), running)


def dry_run(config: FuseConfig, pictures: int = 10) -> Rows:
    """What the first pictures would be given; writes no caption."""
    prepare(config)
    return preview(config.work, partial(Fuser, config), pictures)


def prepare(config: FuseConfig) -> None:
    """The lexicon and the judge's models, where they are missing, once for all workers."""
    check_complete(config.work, config.describe_stage)
    lexicon_of(config)
    if config.judge == "tower":
        from capwright.captions.score.judge import trained_tower

        trained_tower(config.work, config.tower, config.picture_size, config.human_field)


def lexicon_of(config: FuseConfig) -> Lexicon:
    """The names to look for; a tower knows the corpus's own names alone, so WordNet's are left out
    with one unless they are asked for."""
    chosen = config.lexicon
    if chosen.wordnet is None:
        chosen = replace(chosen, wordnet=config.judge == "none")
    return corpus_lexicon(config.work, config.describe_stage, config.human_field, chosen)


class Fuser:
    """Fuses the captions of a shard."""

    def __init__(self, config: FuseConfig) -> None:
        self.config = config
        self.lexicon = lexicon_of(config)
        self.judge = _judge(config) if config.judge == "tower" else None

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        """A row for each picture of the table."""
        keys, alts = table["key"].to_pylist(), table["text"].to_pylist()
        texts = first_captions(self.config.work, self.config.describe_stage, table)
        fused = self._judged(table, alts, texts) if self.judge else self._unjudged(alts, texts)
        progress.advance(pictures=len(keys), captions=sum(bool(one.text) for one in fused))
        return [
            {
                "key": key,
                "source": SOURCE,
                "text": one.text,
                "model": "rules",
                "keep": bool(one.text),
                "reason": one.reason,
            }
            for key, one in zip(keys, fused, strict=True)
        ]

    def _unjudged(self, alts: Sequence[str], texts: Sequence[str]) -> list[Fused]:
        return [
            fuse_unjudged(alt, text, self.lexicon, self.config)
            for alt, text in zip(alts, texts, strict=True)
        ]

    def _judged(self, table: pa.Table, alts: Sequence[str], texts: Sequence[str]) -> list[Fused]:
        named = [
            sorted({*self.lexicon.names_in(alt), *self.lexicon.names_in(text)})
            for alt, text in zip(alts, texts, strict=True)
        ]
        assert self.judge
        scores = self.judge.score_shard(table, named)
        return [
            fuse(alt, text, self.lexicon, dict(zip(names, values, strict=True)), self.config)
            for alt, text, names, values in zip(alts, texts, named, scores, strict=True)
        ]


def fuse_unjudged(alt: str, description: str, lexicon: Lexicon, config: FuseConfig) -> Fused:
    """Fuse one pair without a judge; the description is trusted."""
    if not description:
        return Fused(text="", reason=NO_DESCRIPTION)
    said = claims(alt)
    support = dict.fromkeys(lexicon.names_in(said), config.alt_support)
    support |= dict.fromkeys(lexicon.names_in(description), 1.0)
    fused = _join(said, description, lexicon, support, config)
    return replace(fused, reason=JUNK) if alt and fused.reason == NO_ALT else fused


def fuse(
    alt: str, description: str, lexicon: Lexicon, support: Mapping[str, float], config: FuseConfig
) -> Fused:
    """Fuse one pair; `support` gives the score of every name of either text."""
    pruned = prune(description, lexicon, support, config.unsupported)
    return _join(alt, pruned, lexicon, support, config)


def _join(
    alt: str, description: str, lexicon: Lexicon, support: Mapping[str, float], config: FuseConfig
) -> Fused:
    alt_words = split_words(alt)
    spans = lexicon.find(alt_words)
    if not spans:
        return Fused(text=description, reason=JUNK if alt else NO_ALT)
    text, reasons = description, []
    for name in dict.fromkeys(span.name for span in spans):
        span = next(span for span in spans if span.name == name)
        phrase = _with_article(alt_words, span)
        text, reason = _take(text, name, phrase, lexicon, support, config)
        reasons.append(reason)
    return Fused(text=text, reason=min(reasons, key=_weight))


def prune(
    description: str, lexicon: Lexicon, support: Mapping[str, float], unsupported: float
) -> str:
    """Leave out clauses after the first that name nothing new, or nothing that is supported."""
    pieces = re.split(r"([,;])", description)
    kept, said = pieces[:1], set(lexicon.names_in(pieces[0]))
    for mark, clause in zip(pieces[1::2], pieces[2::2], strict=True):
        spans = lexicon.find(split_words(clause))
        new = spans[:1] and spans[0].name  # a clause begins with what it is about
        another = clause.split()[:1] == ["another"]
        if new and ((new in said and not another) or support.get(new, 1.0) < unsupported):
            continue
        kept += [mark, clause]
        said |= {span.name for span in spans}
    text = "".join(kept)
    return text if text == description else _sentence(split_words(text))


def _take(
    text: str,
    name: str,
    phrase: list[str],
    lexicon: Lexicon,
    support: Mapping[str, float],
    config: FuseConfig,
) -> tuple[str, str]:
    words = split_words(text)
    said = lexicon.find(words)
    if any(span.name == name for span in said):
        return text, AGREES
    score = support.get(name, 0.0)
    kin = next((span for span in said if _less_exact(span.name, name)), None)
    if kin and score >= config.specific:
        return _replace(words, kin.name, phrase, lexicon), "alt specifies"
    if any(_less_exact(name, span.name) for span in said):
        return text, AGREES
    if score < config.supported:
        return text, "alt not supported"
    if not said and not text:
        return _sentence(phrase), NO_DESCRIPTION
    doubted = [s for s in said if support.get(s.name, 0.0) < min(config.doubtful, score)]
    if doubted:
        worst = min(doubted, key=lambda span: support.get(span.name, 0.0))
        return _replace(words, worst.name, phrase, lexicon), "alt corrects"
    return _sentence([*_without_end(words), "and", *phrase]), "alt adds"


def _less_exact(general: str, exact: str) -> bool:
    """ "pig" is less exact than "tamworth pig"."""
    return general != exact and exact.endswith(" " + general)


def _replace(words: list[str], name: str, phrase: list[str], lexicon: Lexicon) -> str:
    """Put `phrase` (article and name) for `name` wherever it is said."""
    words = list(words)
    for span in reversed(lexicon.find(words)):
        if span.name != name:
            continue
        start, new = span.start, phrase
        before = words[start - 1].lower() if start else ""
        if before in ("a", "an") and phrase[0] in ("a", "an"):
            start -= 1
        elif phrase[0] in DETERMINERS:
            new = phrase[1:]
        words[start : span.end] = new
    return _sentence(words)


def _with_article(words: Sequence[str], span: Span) -> list[str]:
    """The name as the alt text writes it, with a fitting "a" or "an" unless it is a plural."""
    name = list(words[span.start : span.end])
    before = words[span.start - 1].lower() if span.start else ""
    if before in DETERMINERS - {"the", "another"}:
        return [before, *name]
    last = name[-1].lower()
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return name
    return ["an" if name[0][0].lower() in "aeiou" else "a", *name]


def _sentence(words: Sequence[str]) -> str:
    text = re.sub(r"\s+([,;:.!?)])", r"\1", " ".join([*_without_end(words), "."]))
    return text[:1].upper() + text[1:]


def _without_end(words: Sequence[str]) -> list[str]:
    kept = list(words)
    while kept and kept[-1] in ".,;:!?":
        kept.pop()
    return kept


def _weight(reason: str) -> int:
    """The reason that changed most speaks for the picture."""
    order = (NO_DESCRIPTION, "alt corrects", "alt adds", "alt specifies", AGREES)
    return order.index(reason) if reason in order else len(order)


def first_captions(work: Path, stage: str, table: pa.Table) -> list[str]:
    """The first kept caption that `stage` gave each picture of a shard's rows, or ""."""
    shard = table["shard"][0].as_py()
    described = read_sidecars(stage_folder(work, stage), [shard], ["key", "text", "keep"])
    first: dict[str, str] = {}
    for row in described.to_pylist():
        if row["keep"]:
            first.setdefault(row["key"], row["text"])
    return [first.get(key, "") for key in table["key"].to_pylist()]


def _judge(config: FuseConfig) -> Any:
    from capwright.captions.score.judge import embedded_judge

    return embedded_judge(config.work, config.tower, config.picture_size, config.human_field)
