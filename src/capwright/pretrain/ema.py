"""Averaged weights: an exponential moving average of the model, which checkpoints then hold.

After step t the average moves to m_t * average + (1 - m_t) * weights with m_t = min(m, (1 + t) /
(10 + t)), so that the first weights are forgotten in short runs as well. Running statistics of
batch norms are taken as they are. `DataCompDR` training uses m = 0.9995 (MobileCLIP, arXiv
2311.17049)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from capwright.pretrain import parallel


class AveragedWeights:
    """The average of a module's parameters, sharded as they are."""

    def __init__(self, module: nn.Module, momentum: float) -> None:
        self.module, self.momentum = module, momentum
        self.average = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the module's weights after step number `step`, counted from 0."""
        momentum = min(self.momentum, (1 + step) / (10 + step))
        for name, parameter in self.module.named_parameters():
            self.average[name].lerp_(parameter.detach(), 1 - momentum)

    def state_dict(self) -> dict[str, Tensor]:
        """The module's state with averaged parameters, whole; every process must ask."""
        state = {name: parallel.full(value) for name, value in self.module.state_dict().items()}
        return state | {name: parallel.full(value) for name, value in self.average.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        for name, value in self.average.items():
            parallel.put(value, state[name])


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher of the same build towards its student; buffers are taken over as they are."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.lerp_(new.detach(), 1 - momentum)
    for kept, moved in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(moved)
