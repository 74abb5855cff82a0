"""One process or many: who we are, features gathered with their gradient, gradients averaged.

Started by `torchrun`, the processes find each other through its environment; without it there is
one. An objective's loss is averaged over ranks, so gradients are averaged too.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Group:
    """The processes that train together."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


ALONE = Group()


@contextmanager
def join() -> Iterator[Group]:
    """Join the processes that torchrun started; an existing process group is used as it is."""
    ours = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if ours:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        if dist.is_initialized():
            yield Group(rank=dist.get_rank(), world=dist.get_world_size())
        else:
            yield ALONE
    finally:
        if ours:
            dist.destroy_process_group()


def barrier(group: Group) -> None:
    """Wait for all processes."""
    if group.world > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, group: Group) -> Tensor:
        ctx.rank, ctx.size = group.rank, len(local)
        parts = [torch.empty_like(local) for _ in range(group.world)]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        # every rank's loss depends on our features, so what they feel is summed
        total = grads[0].contiguous()
        dist.all_reduce(total)
        return total[ctx.rank * ctx.size : (ctx.rank + 1) * ctx.size], None


def gather(local: Tensor, group: Group) -> Tensor:
    """Rows of all ranks in order of rank, with gradients for floating-point rows."""
    if group.world == 1:
        return local
    gathered: Tensor = _Gather.apply(local, group)
    return gathered


def average(value: Tensor, group: Group) -> Tensor:
    """Mean over ranks, without gradient."""
    if group.world > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
        value /= group.world
    return value.detach()


def average_gradients(parameters: Sequence[nn.Parameter], group: Group) -> None:
    """Replace every gradient by its mean over ranks, in one message.

    One flat reduction and no wrapper around the model: objectives call parts of it, and what they
    leave without a gradient (the same on every rank) stays without.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if group.world == 1 or not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= group.world
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))
