"""What the suite measures with and what it is told: its configuration, a model, a task.

Reads a checkpoint when the first task needs it. Writes nothing; suite.py is the stage around it,
suite_tasks.py knows which tasks there are.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from capwright.core.errors import CapwrightError
from capwright.dense.training_free import METHODS, find_method
from capwright.evaluate.dense_training import MODES, Mode, ProbeRecipe
from capwright.evaluate.embeddings import Embeddings
from capwright.evaluate.encoder import load_encoder
from capwright.evaluate.outcomes import Outcomes
from capwright.evaluate.results import Protocol, Result, code_revision
from capwright.models import towers
from capwright.models.devices import pick_device

Suite = Literal["zero-shot", "retrieval", "dense", "all"]
SUITES: tuple[Suite, ...] = ("zero-shot", "retrieval", "dense", "all")
SCRATCH = "scratch"  # stands for a checkpoint: fresh weights

Measured = tuple[list[Result], list[Outcomes]]


class Unfit(CapwrightError):
    """A model that a task cannot be measured with; the suite goes on with the next task."""


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Which models on which data."""

    models: tuple[str, ...]  # what `load_encoder` takes, or "scratch"
    data: Path  # folder of data sets
    out: Path  # folder of results
    suite: Suite = "all"
    samples: int | None = None  # first so many pictures of each set; None: all
    methods: tuple[str, ...] = METHODS  # of training-free segmentation
    modes: tuple[Mode, ...] = MODES  # of the dense probe
    seeds: int = 1  # of the dense probe
    recipe: ProbeRecipe = field(default_factory=ProbeRecipe)  # of the dense probe
    model: str | Mapping[str, Any] = "nano"  # towers of "scratch"
    seed: int = 0  # of its fresh weights
    batch: int = 64  # pictures of one pass
    device: str = "auto"  # auto: a GPU where there is one; the scenes' protocols run on the CPU

    def __post_init__(self) -> None:
        if not self.models or len(set(map(label_of, self.models))) < len(self.models):
            raise CapwrightError(
                f"models {', '.join(self.models) or 'none'}: give at least one, each once"
            )
        if self.suite not in SUITES:
            raise CapwrightError(f"suite {self.suite!r}: allowed are {', '.join(SUITES)}")
        for method in self.methods:
            find_method(method)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement of a model, in one results file."""

    name: str  # of the file
    plan: Mapping[str, Any]  # what the numbers depend on, beside the model
    measure: Callable[["Model"], Measured]


class Model:
    """A model at work: loaded when the first task needs it."""

    def __init__(self, checkpoint: str, config: SuiteConfig) -> None:
        self.checkpoint = None if checkpoint == SCRATCH else checkpoint
        self.config = config

    @property
    def identity(self) -> Any:
        """What stands for the weights in a plan."""
        if self.checkpoint is None:
            return {"model": self.config.model, "seed": self.config.seed}
        file = towers.config_file(self.checkpoint)
        return str(file.parent.resolve()) if file else self.checkpoint

    @cached_property
    def embeddings(self) -> Embeddings:
        """Loads the model."""
        config = self.config
        encoder = load_encoder(self.checkpoint, model=config.model, seed=config.seed)
        encoder.model.to(pick_device(config.device))
        return Embeddings(encoder, batch=config.batch)

    def result(
        self,
        dataset: str,
        task: str,
        protocol: Protocol,
        metrics: Mapping[str, float | None],
        options: Mapping[str, Any],
    ) -> Result:
        """The metrics with where they come from."""
        encoder = self.embeddings.encoder
        return Result(
            dataset=dataset,
            model=encoder.name,
            pretrained=encoder.pretrained,
            task=task,
            metrics=metrics,
            protocol=protocol,
            seed=self.config.seed,
            samples_seen=encoder.samples_seen,
            code_revision=code_revision(),
            options=options,
        )


def label_of(checkpoint: str) -> str:
    """A model's name as the name of a folder."""
    return re.sub(r"[^\w.=-]+", "_", checkpoint).strip("_.") or "model"
