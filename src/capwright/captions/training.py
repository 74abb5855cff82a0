"""One small training loop for the captioner's parts and the score tower, exact after a kill.

Reads and writes: a checkpoint folder that its caller names, one file per phase. The batches and the
dropout of a step are functions of (seed, phase, step) alone, so a run that was killed and goes on
from its last checkpoint ends with the same weights as one that was not.

Algorithm: AdamW (arXiv 1711.05101) with a linear warm-up and a cosine decay to zero; optionally the
weights with the least loss on held examples are kept instead of the last.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from capwright.core.config import digest
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.pretrain.precision import arithmetic

CLIP_NORM = 1.0
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """How long and how fast one phase trains."""

    name: str
    """Names the checkpoint and enters the random seed."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    """Examples in one step."""
    learning_rate: float
    """The highest learning rate."""
    weight_decay: float = 0.05
    """AdamW's decay of matrices; vectors are not decayed."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    evaluate_every_steps: int = 0
    """Steps between two looks at the held examples; 0 keeps the last weights."""
    save_every_s: float = 15.0
    """Seconds between two checkpoints."""


def draw_batch(
    seed: int, phase: Phase, step: int, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The rows of one step; every pass over `rows` has an order of its own."""
    size = min(phase.batch_size, len(rows))
    first = step * size
    picked: list[npt.NDArray[np.int64]] = []
    need = size
    while need:
        number, at = divmod(first, len(rows))
        order = np.random.default_rng([seed, _number(phase.name), number]).permutation(rows)
        picked.append(order[at : at + need])
        need -= len(picked[-1])
        first += len(picked[-1])
    return np.concatenate(picked)


def train_phase(
    model: nn.Module,
    phase: Phase,
    seed: int,
    folder: Path,
    loss_of_step: Callable[[int], Tensor],
    held_loss: Callable[[], float] | None = None,
) -> None:
    """Train `model` in place; goes on from `folder`/NAME.pt where a killed run left it.

    `loss_of_step(step)` gives the scalar loss of one step with the model in training mode.
    """
    path = folder / f"{phase.name}.pt"
    optimizer = torch.optim.AdamW(_groups(model, phase.weight_decay), lr=phase.learning_rate)
    step, best = _resume(path, model, optimizer)
    saved = time.monotonic()
    model.train()
    steps = Progress(phase.name, phase.steps, "steps", start=step)
    with steps as progress, torch.random.fork_rng(devices=[]):
        while step < phase.steps:
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * _pace(step, phase)
            torch.manual_seed(_number(f"{seed}/{phase.name}/{step}"))
            with arithmetic("auto", CPU):
                loss = loss_of_step(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            step += 1
            note = f"loss {loss.item():.3f}"
            every = phase.evaluate_every_steps
            if held_loss and every and (step % every == 0 or step == phase.steps):
                note += f", held {best.look(model, held_loss):.3f}"
            progress.advance(note=note)
            if time.monotonic() - saved > phase.save_every_s or step == phase.steps:
                _save(path, model, optimizer, step, best)
                saved = time.monotonic()
    if best.weights:
        model.load_state_dict(best.weights)
    model.eval()


@dataclass
class _Best:
    """The weights with the least loss on the held examples; empty before the first look."""

    loss: float = math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)

    def look(self, model: nn.Module, held_loss: Callable[[], float]) -> float:
        """Evaluate, keep the weights if they are the best so far, and return the loss."""
        model.eval()
        with torch.no_grad():
            now = held_loss()
        model.train()
        if now < self.loss:
            self.loss = now
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        return now


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, _Best]:
    if not path.exists():
        return 0, _Best()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], _Best(state["best_loss"], state["best"])


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, best: _Best
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "best_loss": best.loss,
        "best": best.weights,
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _pace(step: int, phase: Phase) -> float:
    warm = min(1.0, (step + 1) / max(1, phase.warmup_steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / max(1, phase.steps)))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _number(text: str) -> int:
    return int(digest(text), 16)
