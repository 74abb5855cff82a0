"""The training loop of transfer: items, a loss, AdamW, and exact continuation.

Which items a step takes, and every random number of it, is a function of (seed, step) alone: the
items follow one permutation a pass (pretrain/draws.py), item p of step s draws from a generator
seeded with (seed, s, p + 1), the loss with (seed, s, 0), and torch's own generator is seeded at
every step. So a killed run that is started again ends with the same weights, whatever the number
of workers that read: on a CPU bit for bit (same machine, same number of threads), on a GPU not to
the bit, since some of its kernels add in no fixed order.

Writes FOLDER/state.pt (weights, but not those of a frozen backbone; optimiser; step) and
FOLDER/metrics.jsonl. SIGTERM ends the step in hand, writes the state and raises `Stopped`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.utils.data import Dataset

from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.core.run_folder import MetricsLog
from capwright.datasets.sets import LabelledSet
from capwright.dense.backbone import Backbone
from capwright.pretrain import draws, signals
from capwright.pretrain.loading import in_steps
from capwright.pretrain.precision import Precision, arithmetic, attention_kernel

STATE = "state.pt"
SHAPES = ("poly", "cosine", "step", "one_cycle", "constant")
STEP_FACTOR = 0.1  # of the rate at each milestone of the shape "step"
LOOKED_AT = 20  # steps between two looks at the loss: each waits for the device

View = Callable[[Any, Generator], Any]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast is learned: AdamW, a linear warm-up, then a shape.

    With x the share of the steps after the warm-up, the rate is multiplied with `least` + (1 -
    `least`) * f: poly (1 - x)^power; cosine (1 + cos pi x) / 2; step 0.1^(milestones passed);
    one_cycle (2x)^power in the first half and 1 - (2x - 1)^power in the second; constant 1.
    """

    steps: int
    batch: int
    learning_rate: float  # of what is not the encoder
    encoder_learning_rate: float = 0.0  # of the encoder's top; 0 freezes it
    layer_decay: float = 1.0  # factor on the rate from one block of the encoder to the one below
    weight_decay: float = 0.05  # not of norms and biases
    warmup_steps: int = 0
    shape: Literal["poly", "cosine", "step", "one_cycle", "constant"] = "poly"
    power: float = 1.0
    least: float = 0.0  # share of the rate that is left at the end
    milestones: tuple[float, ...] = ()  # of "step", as shares of all steps
    grad_clip: float = 0.0  # norm of the gradient at most; 0: as it is
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.warmup_steps < self.steps:
            raise CapwrightError(
                f"steps={self.steps}, batch={self.batch}, warmup_steps={self.warmup_steps}: steps "
                "and batch are at least 1, and the warm-up is shorter than the steps"
            )
        if self.shape not in SHAPES:
            raise CapwrightError(f"shape {self.shape!r}: allowed are {', '.join(SHAPES)}")
        if self.learning_rate <= 0 or self.encoder_learning_rate < 0 or self.weight_decay < 0:
            raise CapwrightError(
                f"learning_rate={self.learning_rate}, encoder_learning_rate="
                f"{self.encoder_learning_rate}, weight_decay={self.weight_decay}: the first is "
                "above 0, the others at least 0"
            )
        if not 0 < self.layer_decay <= 1 or not 0 <= self.least <= 1 or self.grad_clip < 0:
            raise CapwrightError(
                f"layer_decay={self.layer_decay}, least={self.least}, grad_clip={self.grad_clip}: "
                "layer_decay is above 0 and at most 1, least 0 to 1, grad_clip at least 0"
            )
        rising = list(self.milestones) == sorted(self.milestones)
        if not rising or not all(0 < share < 1 for share in self.milestones):
            raise CapwrightError(
                f"milestones {self.milestones}: shares of the steps, rising, between 0 and 1"
            )

    def factor(self, step: int) -> float:
        """What the rates are multiplied with at step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        x = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        if self.shape == "step":
            passed = sum(step >= share * self.steps for share in self.milestones)
            return self.least + (1 - self.least) * STEP_FACTOR**passed
        shapes: dict[str, float] = {
            "poly": (1 - x) ** self.power,
            "cosine": 0.5 + 0.5 * math.cos(math.pi * x),
            "one_cycle": (2 * x) ** self.power if x < 0.5 else 1 - (2 * x - 1) ** self.power,
            "constant": 1.0,
        }
        return self.least + (1 - self.least) * shapes[self.shape]


class Learner(Protocol):
    """What a task gives the loop."""

    @property
    def module(self) -> nn.Module:
        """All that trains; its state is what is saved."""

    def loss(self, items: Sequence[Any], draws: Generator) -> Tensor:
        """Scalar loss of items of the set, or of what `view` made of them."""


def fit(
    learner: Learner,
    dataset: LabelledSet[Any],
    numbers: Sequence[int],
    schedule: Schedule,
    *,
    folder: Path,
    seed: int,
    save_every: int = 1000,
    workers: int = 0,
    precision: Precision = "auto",
    device: str | torch.device = "cpu",
    view: View | None = None,
    label: str = "learn",
) -> None:
    """Train the learner's module on the items `numbers`, from the last state where there is one.

    `view` (picklable where workers are not 0) turns an item into what the loss gets, in the worker
    that read it. A learner may have `parameter_groups(schedule)`; without, they are those of the
    function of that name. A backbone is frozen where the schedule gives it no learning rate. The
    module ends in evaluation mode. Raises CapwrightError for no items, a state of another plan and
    a loss that is not finite; `signals.Stopped` after SIGTERM.
    """
    if not numbers:
        raise CapwrightError(f"{dataset.name} gives no items to learn from: raise the fraction")
    if precision == "fp16":
        raise CapwrightError("precision fp16 needs a scaled loss, which transfer lacks: take bf16")
    device = torch.device(device)
    module = learner.module.to(device)
    optimizer = _optimizer(learner, schedule)
    rates = [group["lr"] for group in optimizer.param_groups]
    plan = digest({"schedule": schedule, "seed": seed, "items": list(numbers)})
    state = State(folder / STATE, module, optimizer, plan)
    start = state.read()
    source = Batches(dataset, numbers, schedule.batch, seed, view)
    forked = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=forked),
        signals.watch() as asked,
        MetricsLog(folder / "metrics.jsonl") as log,
        Progress(label, schedule.steps, "steps", start) as progress,
    ):
        module.train()
        for step, items in in_steps(source, range(start, schedule.steps), workers):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule.factor(step)
            torch.manual_seed(draws.step_seed(seed, step, 0))
            with arithmetic(precision, device):
                loss = learner.loss(items, np.random.default_rng([seed, step, 0]))
            with attention_kernel(precision, device):
                _update(module, optimizer, loss, schedule.grad_clip)
            done, note = step + 1, ""
            if done % LOOKED_AT == 0 or done == schedule.steps:
                note = _look(loss, step, schedule, log)
            progress.advance(note=note)
            if done % save_every == 0 or done == schedule.steps or asked:
                state.write(done)
            if asked and done < schedule.steps:
                raise signals.Stopped(done * schedule.batch, str(state.path))
    module.eval()


def _optimizer(learner: Learner, schedule: Schedule) -> torch.optim.Optimizer:
    if not schedule.encoder_learning_rate:
        freeze(learner.module)
    own = getattr(learner, "parameter_groups", None)
    groups = parameter_groups(learner.module, schedule) if own is None else own(schedule)
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=schedule.betas)


def _update(
    module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, grad_clip: float
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if grad_clip:
        nn.utils.clip_grad_norm_(module.parameters(), grad_clip)
    optimizer.step()


def freeze(module: nn.Module) -> None:
    """Freeze every backbone inside."""
    for part in module.modules():
        if isinstance(part, Backbone):
            part.freeze()


def parameter_groups(module: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Groups of an optimiser: backbones by their layers, the rest in two (norms, biases apart)."""
    groups: list[dict[str, Any]] = []
    inside: set[nn.Parameter] = set()
    for part in module.modules():
        if isinstance(part, Backbone):
            inside |= set(part.parameters())
            groups += part.parameter_groups(
                learning_rate=schedule.encoder_learning_rate,
                decay=schedule.layer_decay,
                weight_decay=schedule.weight_decay,
            )
    rest = [p for p in module.parameters() if p.requires_grad and p not in inside]
    for matrix in (True, False):
        chosen = [p for p in rest if (p.ndim > 1) == matrix]
        decay = schedule.weight_decay if matrix else 0.0
        groups.append({"params": chosen, "lr": schedule.learning_rate, "weight_decay": decay})
    return [group for group in groups if group["params"]]


class Batches(Dataset[Any]):
    """What a step sees, by the step's number."""

    def __init__(
        self,
        dataset: LabelledSet[Any],
        numbers: Sequence[int],
        batch: int,
        seed: int,
        view: View | None,
    ) -> None:
        self.dataset, self.numbers, self.batch = dataset, tuple(numbers), batch
        self.seed, self.view = seed, view

    @property
    def places(self) -> range:
        """Which items of a step are read here: all of them."""
        return range(self.batch)

    def chosen(self, step: int) -> list[int]:
        """Numbers of the items of a step: passes follow each other without a gap."""
        count = len(self.numbers)
        places = range(step * self.batch, (step + 1) * self.batch)
        return [
            self.numbers[draws.permutation(self.seed, place // count, count)[place % count]]
            for place in places
        ]

    def __getitem__(self, step: int) -> list[Any]:
        chosen = self.chosen(step)
        items = [(place, self.dataset[chosen[place]]) for place in self.places]
        if self.view is None:
            return [item for _, item in items]
        return [
            self.view(item, np.random.default_rng([self.seed, step, 1 + place]))
            for place, item in items
        ]


class State:
    """Where a run is, on the disk."""

    def __init__(
        self, path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, plan: str
    ) -> None:
        self.path, self.module, self.optimizer, self.plan = path, module, optimizer, plan

    def read(self) -> int:
        """Load the last state; returns the number of steps done, 0 without a state."""
        if not self.path.exists():
            return 0
        found = torch.load(self.path, weights_only=True, map_location="cpu")
        if found["plan"] != self.plan:
            raise CapwrightError(
                f"{self.path} was made with another schedule, seed or choice of items: "
                "delete its folder, or choose another"
            )
        self.module.load_state_dict({**_frozen(self.module), **found["module"]})
        self.optimizer.load_state_dict(found["optimizer"])
        return int(found["step"])

    def write(self, step: int) -> None:
        """Store the state after `step` steps, complete or not at all."""
        frozen = _frozen(self.module)
        learned = {k: v for k, v in self.module.state_dict().items() if k not in frozen}
        state = {
            "plan": self.plan,
            "step": step,
            "module": learned,
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)


def _frozen(module: nn.Module) -> Mapping[str, Tensor]:
    """State of frozen backbones, by its name in the module's."""
    prefixes = tuple(
        f"{name}." if name else ""
        for name, part in module.named_modules()
        if isinstance(part, Backbone) and part.frozen
    )
    if not prefixes:
        return {}
    return {k: v for k, v in module.state_dict().items() if k.startswith(prefixes)}


def _look(loss: Tensor, step: int, schedule: Schedule, log: MetricsLog) -> str:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise CapwrightError(
            f"the loss is {value} at step {step + 1}: lower schedule.learning_rate and "
            "schedule.encoder_learning_rate, or set schedule.grad_clip=1"
        )
    log.write(step=step + 1, loss=value, rate=schedule.learning_rate * schedule.factor(step))
    return f"loss {value:.3f}"
