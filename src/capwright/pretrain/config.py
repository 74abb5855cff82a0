"""The plan of a pretraining run: everything that decides the weights, and how to run it.

Nothing here imports torch, so recipes are cheap to read. The dials of an objective are in
`settings/`, and a recipe finds them all here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.pretrain import schedule
from capwright.pretrain.schedule import Schedule
from capwright.pretrain.settings.augmentation import Augmentation as Augmentation
from capwright.pretrain.settings.captioning import CaptioningSettings as CaptioningSettings
from capwright.pretrain.settings.contrastive import ContrastiveSettings as ContrastiveSettings
from capwright.pretrain.settings.masked_autoencoder import (
    MaskedAutoencoderSettings as MaskedAutoencoderSettings,
)
from capwright.pretrain.settings.non_contrastive import (
    NonContrastiveSettings as NonContrastiveSettings,
)
from capwright.pretrain.settings.pseudo_labels import PseudoLabelsSettings as PseudoLabelsSettings
from capwright.pretrain.settings.reinforced import ReinforcedSettings as ReinforcedSettings
from capwright.pretrain.settings.sampling import CaptionSource as CaptionSource
from capwright.pretrain.settings.sampling import Sampling as Sampling
from capwright.pretrain.settings.self_distillation import (
    SelfDistillationSettings as SelfDistillationSettings,
)

TRACKERS = ("tensorboard", "wandb")
# fields that say how and where to run, and may change between a run and its continuation
RUNNING = (
    "out", "work", "threads", "loader_workers", "resume", "cache_pixels", "log_every_steps",
    "parallel", "trackers", "checkpoint_samples", "keep_checkpoints",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining run."""

    out: Path  # run folder to write
    work: Path  # work folder with the index
    # captions
    captions: tuple[CaptionSource, ...] = (CaptionSource(name="alt"),)
    sampling: Sampling = field(
        default_factory=Sampling
    )  # how captions are chosen from their sources
    # towers
    model: str | Mapping[str, Any] = "nano"  # name, JSON file or open_clip configuration
    init: str | None = None  # weights to begin with: MODEL/TAG, hf-hub:…, a folder or a file
    init_towers: tuple[Literal["image", "text"], ...] = ("image", "text")  # that `init` fills
    freeze: tuple[Literal["image", "text"], ...] = ()  # towers that stay as they are
    context_length: int | None = None  # tokens of a text; None is the model's
    tokenizer: Literal["corpus-words", "open_clip"] = "corpus-words"  # `init` brings its own
    vocabulary: int = 8192  # at most so many entries of "corpus-words"
    vocabulary_min_count: int = 3  # a word that occurs less often is unknown to "corpus-words"
    image_size: int = 64  # pixels a side that the tower sees
    stored_size: int | None = None  # pixels a side before the crop; None is image_size
    augmentation: Augmentation = field(default_factory=Augmentation)
    # objectives: weights, constant or by the share of the run, and the dials of each
    objectives: Mapping[str, Schedule] = field(default_factory=lambda: {"contrastive": 1.0})
    contrastive: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    masked_autoencoder: MaskedAutoencoderSettings = field(default_factory=MaskedAutoencoderSettings)
    captioning: CaptioningSettings = field(default_factory=CaptioningSettings)
    self_distillation: SelfDistillationSettings = field(default_factory=SelfDistillationSettings)
    pseudo_labels: PseudoLabelsSettings = field(default_factory=PseudoLabelsSettings)
    non_contrastive: NonContrastiveSettings = field(default_factory=NonContrastiveSettings)
    reinforced: ReinforcedSettings = field(default_factory=ReinforcedSettings)
    # optimiser
    batch_size: int = 256  # global: all processes together
    accumulation: int = 1  # parts that a process cuts its share of a batch into, for the memory
    samples: int = 76_800  # samples to see, rounded up to whole batches
    warmup_samples: int = 7_680  # linear warm-up, then cosine to zero
    learning_rate: float = 1e-3
    weight_decay: float = 0.1  # of matrices; norms, biases, positions and the logit scale have none
    betas: tuple[float, float] = (0.9, 0.98)
    grad_clip: float = 1.0  # norm above which the gradient is scaled down; 0 is never
    ema: float = 0.0  # momentum of averaged weights, which checkpoints then hold; 0 is none
    patch_dropout: float = 0.5  # share of the patches left out; objectives on the map see all
    seed: int = 0
    # arithmetic and memory
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where hardware has it
    grad_checkpointing: bool = False  # activations are computed twice and not kept
    compile: bool = False  # towers through torch.compile
    sync_batchnorm: bool = False  # batch norms over all processes
    # how to run, without a say in the weights
    checkpoint_samples: int = 12_800  # a checkpoint after so many samples, and at the end
    keep_checkpoints: int = 2  # the newest ones; 0 keeps all
    resume: Literal["auto", "never"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of many processes: whole models, or shards of one
    cache_pixels: bool = True  # decode once into WORK/pixels; False decodes as it goes
    loader_workers: int = 0  # processes that prepare batches; 0 is the training process itself
    threads: int | None = None  # of torch; None leaves its default
    log_every_steps: int = 10
    trackers: tuple[str, ...] = ()  # "tensorboard", "wandb", beside metrics.jsonl

    def __post_init__(self) -> None:
        self._check_numbers()
        if not self.objectives:
            raise CapwrightError(
                "objectives is empty: name at least one, for example contrastive=1"
            )
        for name, weight in self.objectives.items():
            schedule.check(f"objectives.{name}", weight)
        if not self.weights:
            raise CapwrightError("every objective has weight 0: give at least one a weight above 0")
        if not 0 <= self.patch_dropout < 1:
            raise CapwrightError(
                f"patch_dropout is {self.patch_dropout}: "
                "a share of the patches from 0 up to, but not, 1"
            )
        if not 0 <= self.ema < 1:
            raise CapwrightError(f"ema is {self.ema}: a momentum from 0 (none) to below 1")
        names = [source.name for source in self.captions]
        if len(set(names)) < len(names) or not names:
            raise CapwrightError(
                f"captions has the sources {names}: at least one, each with a name of its own"
            )
        unknown = [name for name in self.trackers if name not in TRACKERS]
        if unknown:
            raise CapwrightError(
                f"tracker {unknown[0]!r} is unknown: allowed are {', '.join(TRACKERS)}"
            )

    def _check_numbers(self) -> None:
        for name in (
            "image_size", "batch_size", "samples", "checkpoint_samples", "log_every_steps",
            "accumulation",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in (
            "learning_rate", "weight_decay", "grad_clip", "keep_checkpoints", "loader_workers",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise CapwrightError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise CapwrightError(f"betas is {self.betas}: two momenta from 0 to below 1")

    def check_together(self) -> None:
        """Checks of several fields, made when a run starts: they may change one by one."""
        self.sampling.sets_of(self.captions)
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
        if "masked_autoencoder" in self.weights:
            self.masked_autoencoder.check_together()
        self._check_every_step()

    def _check_every_step(self) -> None:
        shares = [share for weight in self.weights.values() for share, _ in schedule.points(weight)]
        # weights are linear between points, so a gap holds step 0 or one beside a point
        beside = {int(share * self.steps) + i for share in shares for i in (-1, 0, 1, 2)}
        for step in sorted({0, *beside}):
            if 0 <= step < self.steps and not self.active(step):
                shown = ", ".join(f"{n} {schedule.as_text(w)}" for n, w in self.weights.items())
                raise CapwrightError(
                    f"no objective has a weight above 0 at step {step} of {self.steps} ({shown}): "
                    "every step needs one, so begin one of them above 0 or let another overlap"
                )

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches that cover `samples`."""
        return -(-self.samples // self.batch_size)

    @property
    def weights(self) -> dict[str, Schedule]:
        """The objectives that have a weight at some time; the others are not even built."""
        return {
            name: weight
            for name, weight in self.objectives.items()
            if not schedule.always_zero(weight)
        }

    def active(self, step: int) -> dict[str, float]:
        """The objectives with a weight above 0 at a step, and their weights."""
        found = {n: schedule.value_at(w, step / self.steps) for n, w in self.weights.items()}
        return {name: weight for name, weight in found.items() if weight > 0}

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
    evaluation_seconds: float = 0.0  # of the evaluators, not in `seconds`
    flops: float = 0.0  # of all steps, counted as the plan counts them
