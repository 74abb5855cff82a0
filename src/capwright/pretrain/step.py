"""One optimiser step: forward, backward, at once or in parts, averaged over processes, clipped.

In parts (`accumulation`), features are computed without a graph, the loss of the whole batch gives
their gradients, and each part is computed again to pull its gradient through the towers (GradCache:
Gao et al., arXiv 2101.06983). The gradient is that of the whole batch for every objective, since
objectives mix samples in their second phase alone. A tower with batch norms is the exception: it
normalises over a part. Each part costs one forward pass more."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from capwright.core.errors import CapwrightError
from capwright.pretrain import parallel
from capwright.pretrain.batch import Batch
from capwright.pretrain.distributed import Group
from capwright.pretrain.draws import step_seed
from capwright.pretrain.precision import Precision, arithmetic, attention_kernel
from capwright.pretrain.profiling import phase
from capwright.pretrain.task import Losses

LEAST_SCALE = 1e-3  # of the loss in float16: no gradient of a sound model overflows at it


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """What every step needs; `take` makes one."""

    task: nn.Module  # as `parallel.wrap` returned it
    optimizer: torch.optim.Optimizer
    parameters: Sequence[nn.Parameter]
    group: Group
    device: torch.device
    precision: Precision
    parts: int
    grad_clip: float
    seed: int
    scaler: torch.amp.GradScaler

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Leave the gradients of one batch in the parameters; returns what to log."""
        with attention_kernel(self.precision, self.device):  # `backward` may compute it again
            losses = self._in_parts(batch) if self.parts > 1 else self._at_once(batch)
        parallel.average_scalars(self.task, self.group)
        return {"loss": losses.total.detach(), **losses.values}

    def update(self) -> float:
        """Clip, let the optimiser step, forget the gradients; returns their norm.

        Weights stay as they are where it is not finite. Raises CapwrightError where float16 has no
        scale of the loss left.
        """
        self.scaler.unscale_(self.optimizer)
        norm = parallel.clip(self.parameters, self.grad_clip or math.inf)
        if math.isfinite(norm) or self.scaler.is_enabled():  # the scaler skips such a step itself
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(norm) and self.scaler.get_scale() < LEAST_SCALE:
            raise CapwrightError(
                "the gradient in float16 is not finite at any scale of the loss down to "
                f"{LEAST_SCALE:g}, so no step is taken: set precision=bf16 or lower learning_rate"
            )
        return norm

    def _at_once(self, batch: Batch) -> Losses:
        with phase("forward"):
            losses: Losses = self._call(self.task, "losses", batch, self.group)
        with phase("backward"):
            self.scaler.scale(losses.total).backward()
        return losses

    def _in_parts(self, batch: Batch) -> Losses:
        parts = [batch.part(i, self.parts) for i in range(self.parts)]
        task = parallel.inner(self.task)
        with torch.no_grad(), unmoved_statistics(task), phase("forward"):
            found = [self._call(task, "encode", part, draw=i) for i, part in enumerate(parts)]
        features = {k: torch.cat([f[k] for f in found]) for k in found[0]}
        leaves = {k: f.requires_grad_() for k, f in features.items() if f.is_floating_point()}
        losses: Losses = self._call(task, "terms", features, batch, self.group)
        scaled = self.scaler.scale(losses.total)
        gradients = torch.autograd.grad(scaled, list(leaves.values()), allow_unused=True)
        cut: list[dict[str, Tensor]] = [{} for _ in parts]
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                pieces = gradient.split([len(f[name]) for f in found])
                for own, piece in zip(cut, pieces, strict=True):
                    own[name] = piece
        constants = {name: feature.detach() for name, feature in features.items()}
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            # what phase 2 itself learns comes with the last part, so that one pass averages all
            whole = (constants, batch, self.group, self.scaler.get_scale()) if last else None
            with parallel.averaging(self.task, now=last), phase("backward"):
                self._call(self.task, "pull", part, cut[i], whole, draw=i).backward()
        return losses

    def _call(self, task: nn.Module, *arguments: Any, draw: int = 0) -> Any:
        """Call the task in its precision, with what models draw inside (dropout) fixed.

        Each call has a block of autocast of its own: the casts that it keeps have no gradient if
        they were made without a graph.
        """
        batch = next(value for value in arguments if isinstance(value, Batch))
        torch.manual_seed(step_seed(self.seed, batch.step, self.group.rank) + draw)
        with arithmetic(self.precision, self.device):
            return task(*arguments)


def scaler_for(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaling that float16 needs, and nothing for the others."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def unmoved_statistics(module: nn.Module) -> Iterator[None]:
    """Inside the block batch norms do not move their running statistics: a pass too many."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before: Mapping[_BatchNorm, float | None] = {m: m.momentum for m in norms}
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in before.items():
            norm.momentum = momentum
