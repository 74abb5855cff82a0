"""The plan of a pretraining run: everything that decides the weights, and how to run it.

Nothing here imports torch, so recipes are cheap to read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError

# fields that say how and where to run, and may change between a run and its continuation
RUNNING = ("out", "work", "threads", "loader_workers", "resume", "cache_pixels", "log_every_steps")


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """Captions to train on: alt text (`folder` None) or a stage's sidecars, and how often."""

    name: str  # shown in the plan and in errors
    folder: Path | None = None  # WORK/captions/STAGE; None is the alt text of the index
    sources: tuple[str, ...] | None = None  # only rows whose `source` is one of these
    probability: float = 1.0  # relative to the other sources that have a caption for the picture

    def __post_init__(self) -> None:
        if not self.probability > 0:
            raise CapwrightError(
                f"caption source {self.name!r} has probability {self.probability}: "
                "it must be above 0; leave the source out instead"
            )


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Light augmentation of the pictures, drawn from (seed, sample, epoch)."""

    crop_area: tuple[float, float] = (0.6, 1.0)  # share of the picture's area that a crop keeps
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)  # width / height of the crop
    flip: bool = False  # captions say left and right, so mirroring would make them false

    def __post_init__(self) -> None:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise CapwrightError(
                f"augmentation.crop_area is {self.crop_area}: "
                "two shares with 0 < smallest <= largest <= 1"
            )
        low, high = self.crop_aspect
        if not 0 < low <= high:
            raise CapwrightError(
                f"augmentation.crop_aspect is {self.crop_aspect}: "
                "two ratios with 0 < smallest <= largest"
            )


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoderConfig:
    """Dials of the objective `masked_autoencoder`."""

    masked: float = 0.75  # share of the patches that are hidden and predicted
    decoder_width: int = 96
    decoder_layers: int = 1
    decoder_heads: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.masked < 1:
            raise CapwrightError(
                f"masked_autoencoder.masked is {self.masked}: "
                "a share between 0 and 1, 0.75 in the paper"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining run."""

    out: Path  # run folder to write
    work: Path  # work folder with the index
    captions: tuple[CaptionSource, ...] = (CaptionSource(name="alt"),)
    model: str | Mapping[str, Any] = "nano"  # name or open_clip configuration (models/towers.py)
    tokenizer: Literal["corpus-words", "open_clip"] = "corpus-words"
    vocabulary: int = 8192  # at most so many entries of "corpus-words"
    vocabulary_min_count: int = 3  # a word that occurs less often is unknown to "corpus-words"
    image_size: int = 64  # pixels a side that the tower sees
    stored_size: int | None = None  # pixels a side before the crop; None is image_size
    batch_size: int = 256  # global: all processes together
    samples: int = 76_800  # samples to see, rounded up to whole batches
    warmup_samples: int = 7_680  # linear warm-up, then cosine to zero
    learning_rate: float = 1e-3
    weight_decay: float = 0.1  # of matrices; norms, biases, positions and the logit scale have none
    betas: tuple[float, float] = (0.9, 0.98)
    grad_clip: float = 1.0  # norm above which the gradient is scaled down; 0 is never
    patch_dropout: float = 0.5  # share of the patches that the contrastive objective leaves out
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where hardware has it
    objectives: Mapping[str, float] = field(default_factory=lambda: {"contrastive": 1.0})
    masked_autoencoder: MaskedAutoencoderConfig = MaskedAutoencoderConfig()
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    checkpoint_samples: int = 12_800  # a checkpoint after so many samples, and at the end
    # how to run, without a say in the weights
    resume: Literal["auto", "never"] = "auto"
    cache_pixels: bool = True  # decode once into WORK/pixels; False decodes as it goes
    loader_workers: int = 0  # processes that prepare batches; 0 is the training process itself
    threads: int | None = None  # of torch; None leaves its default
    log_every_steps: int = 10

    def __post_init__(self) -> None:
        self._check_counts()
        if not self.objectives:
            raise CapwrightError(
                "objectives is empty: name at least one, for example contrastive=1"
            )
        if not 0 <= self.patch_dropout < 1:
            raise CapwrightError(
                f"patch_dropout is {self.patch_dropout}: "
                "a share of the patches from 0 up to, but not, 1"
            )
        names = [source.name for source in self.captions]
        if len(set(names)) < len(names) or not names:
            raise CapwrightError(
                f"captions has the sources {names}: at least one, each with a name of its own"
            )

    def _check_counts(self) -> None:
        for name in (
            "image_size",
            "batch_size",
            "samples",
            "checkpoint_samples",
            "log_every_steps",
        ):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}: it must be 1 or more")

    def check_together(self) -> None:
        """Checks of several fields, made when a run starts: settings arrive one by one."""
        if self.samples < self.batch_size:
            raise CapwrightError(
                f"samples is {self.samples}, less than one batch of {self.batch_size}: "
                "raise samples or lower batch_size"
            )
        if not 0 <= self.warmup_samples < self.samples:
            raise CapwrightError(
                f"warmup_samples is {self.warmup_samples}: "
                f"it must be 0 or more and less than samples ({self.samples})"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches that cover `samples`."""
        return -(-self.samples // self.batch_size)

    def plan(self) -> dict[str, Any]:
        """What a run folder is bound to: every field that decides the weights."""
        values = as_dict(self)
        return {name: value for name, value in values.items() if name not in RUNNING}


@dataclass(frozen=True, kw_only=True)
class PretrainSummary:
    """What a finished run left behind."""

    checkpoint: Path  # folder that `open_clip.create_model_and_transforms("local-dir:...")` loads
    samples_seen: int
    seconds: float  # of training, over all continuations
    final_loss: float
    samples_per_second: float
