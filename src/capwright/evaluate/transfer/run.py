"""What a task gets to do one fraction with one seed: an encoder, items, a schedule, a folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

from capwright.core.files import atomic_path
from capwright.dense.backbone import Backbone, Depths, Origin, load_backbone, set_drop_path
from capwright.evaluate.outcomes import Outcomes
from capwright.evaluate.transfer.config import SCRATCH, TransferConfig
from capwright.evaluate.transfer.loop import Learner, View, fit
from capwright.models.devices import pick_device
from capwright.pretrain.draws import name_seed

WEIGHTS = "model.safetensors"
Measured = tuple[dict[str, float | None], Outcomes]  # metrics, and each picture's share


@dataclass(kw_only=True)
class Run:
    """One fraction, one seed."""

    config: TransferConfig
    train: Any  # a set of the task's kind
    numbers: tuple[int, ...]  # of the training items that are learned from
    tests: Mapping[str, Any]  # by split
    seed: int
    folder: Path
    origin: Origin | None = None  # of the encoder, once it is loaded

    @property
    def device(self) -> torch.device:
        """Where all is computed."""
        return pick_device(self.config.device)

    @property
    def split_numbers(self) -> dict[str, range]:
        """Numbers of the items that are tested on, by split."""
        limit = self.config.test_samples
        return {split: range(min(limit or len(s), len(s))) for split, s in self.tests.items()}

    def backbone(self, depths: Depths = "last") -> Backbone:
        """The encoder with its first weights; fresh ones are a function of the seed."""
        config = self.config
        scratch = config.checkpoint == SCRATCH
        found = load_backbone(
            None if scratch else config.checkpoint,
            model=config.model,
            seed=self.seed,
            depths=depths,
        )
        self.origin = found.origin
        if config.schedule_used.encoder_learning_rate:
            set_drop_path(found.visual, config.drop_path)
        return found.to(self.device)

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Inside the block torch draws by the seed: for the weights of heads."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(name_seed(self.seed, "head"))
            yield

    def each_split(self, measure: Callable[[Any, range], Measured]) -> dict[str, Measured]:
        """`measure(set, numbers)` by split."""
        return {split: measure(self.tests[split], n) for split, n in self.split_numbers.items()}

    def fit(self, learner: Learner, view: View | None = None) -> None:
        """Learn, or go on where it was."""
        config = self.config
        fit(
            learner,
            self.train,
            self.numbers,
            config.schedule_used,
            folder=self.folder,
            seed=self.seed,
            save_every=config.save_every,
            workers=config.workers,
            precision=config.precision,
            device=self.device,
            view=view,
            label=f"{config.task}, {len(self.numbers)} items, seed {self.seed}",
        )
        if config.keep_weights:
            with atomic_path(self.folder / WEIGHTS) as temporary:
                save_model(learner.module, str(temporary))
