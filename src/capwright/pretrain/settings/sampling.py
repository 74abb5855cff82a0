"""Which captions a picture is trained with: the sources, and how a step draws from them.

The rules are in docs/reference/caption-sampling.md, the drawing in pretrain/caption_sampler.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capwright.core.errors import CapwrightError
from capwright.pretrain import schedule
from capwright.pretrain.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """Captions to train on: alt text (`folder` None) or a stage's sidecars, and how often."""

    name: str  # shown in the plan and in errors
    folder: Path | None = None  # WORK/captions/STAGE; None is the alt text of the index
    sources: tuple[str, ...] | None = None  # only rows whose `source` is one of these
    probability: Schedule = 1.0  # relative to the other sources that have a caption for the picture
    score: str | None = None  # column of the sidecar by which captions of a picture are preferred

    def __post_init__(self) -> None:
        schedule.check(f"the probability of caption source {self.name!r}", self.probability)
        if schedule.always_zero(self.probability):
            raise CapwrightError(
                f"caption source {self.name!r} has probability {self.probability}: "
                "it must be above 0; leave the source out instead"
            )
        if self.score is not None and self.folder is None:
            raise CapwrightError(
                f"caption source {self.name!r} is the alt text of the index, which has no column "
                f"{self.score!r}: give the folder of a stage that scores alt text, "
                "or leave score out"
            )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a step draws captions from the sources."""

    mode: Literal["mix", "both", "concat", "multi_positive"] = "mix"
    real: tuple[str, ...] | None = None  # mode both: sources of set 0; None is those of alt text
    order: Literal["random", "fixed"] = "random"  # mode concat; fixed is the order of `captions`
    separator: str = ". "  # mode concat, between two captions
    max_captions: int | None = None  # mode multi_positive: draw so many of more; None is all
    by_score: float = 1.0  # power of a source's score column; 0 is evenly
    sub_caption: float = 0.0  # probability that a long caption gives way to some of its sentences
    sub_caption_over_words: int = 20  # a caption is long with more words than this
    sub_caption_sentences: int = 3  # at most so many sentences in a row
    sub_caption_draws: int = 1  # mode multi_positive: so many runs of sentences of a long caption

    def __post_init__(self) -> None:
        if self.max_captions is not None and self.max_captions < 1:
            raise CapwrightError(
                f"sampling.max_captions is {self.max_captions}: "
                "it must be 1 or more, or null for all captions of a picture"
            )
        if not (0 <= self.by_score < math.inf):
            raise CapwrightError(
                f"sampling.by_score is {self.by_score}: a power of 0 (evenly) or more"
            )
        if not 0 <= self.sub_caption <= 1:
            raise CapwrightError(
                f"sampling.sub_caption is {self.sub_caption}: a probability from 0 to 1"
            )
        if self.sub_caption_over_words < 0:
            raise CapwrightError(
                f"sampling.sub_caption_over_words is {self.sub_caption_over_words}: "
                "it must be 0 or more"
            )
        for name in ("sub_caption_sentences", "sub_caption_draws"):
            if getattr(self, name) < 1:
                raise CapwrightError(
                    f"sampling.{name} is {getattr(self, name)}: it must be 1 or more"
                )

    def sets_of(self, sources: Sequence[CaptionSource]) -> tuple[int, ...]:
        """The caption set of each source: in the mode both 0 for real and 1 for synthetic, else 0.

        Raises CapwrightError where the mode both has no source for one of them.
        """
        if self.mode != "both":
            return (0,) * len(sources)
        names = [source.name for source in sources]
        real = self.real
        if real is None:
            real = tuple(source.name for source in sources if source.folder is None)
        unknown = [name for name in real if name not in names]
        if unknown:
            raise CapwrightError(
                f"sampling.real names the caption source {unknown[0]!r}: "
                f"captions has {', '.join(names)}"
            )
        if not 0 < len(real) < len(names):
            raise CapwrightError(
                f"sampling.mode is both with the real sources {list(real)} of {names}: it needs a "
                "real and a synthetic one, so name the real ones in sampling.real or choose "
                "another mode"
            )
        return tuple(int(name not in real) for name in names)

    @property
    def sets(self) -> int:
        """Caption sets of a batch."""
        return 2 if self.mode == "both" else 1
