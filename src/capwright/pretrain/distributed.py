"""One process or many: who we are, and features gathered or averaged with their gradient.

Started by `torchrun`, the processes find each other through its environment; without it there is
one. The loss of the global batch is the mean of the ranks' losses, so `parallel.py` averages
gradients; what is summed here over ranks is a part of every rank's loss, and its gradient is summed
as well.

Shapes: N rows of this rank.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
PATIENCE = timedelta(minutes=30)  # ranks wait for one that evaluates; longer, a lost one costs more


@contextmanager
def join() -> Iterator[Group]:
    """Join the processes that torchrun started; an existing process group is used as it is."""
    ours = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if ours:
        if torch.cuda.is_available():  # before the group, whose barriers would take the first one
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        kind = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(kind, timeout=PATIENCE)
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
    """Rows of all ranks in order of rank, with gradients for floating-point rows.

    Every rank has equally many rows; `gather_uneven` does without that.
    """
    if group.world == 1:
        return local
    gathered: Tensor = _Gather.apply(local, group)
    return gathered


def counts(rows: int, group: Group, device: torch.device) -> list[int]:
    """How many rows each rank has."""
    if group.world == 1:
        return [rows]
    own = torch.tensor([rows], device=device)
    return [int(count) for count in gather(own, group)]


def gather_uneven(local: Tensor, group: Group) -> Tensor:
    """Like `gather` for ranks with different numbers of rows."""
    if group.world == 1:
        return local
    sizes = counts(len(local), group, local.device)
    padding = local.new_zeros(max(sizes) - len(local), *local.shape[1:])
    padded = gather(torch.cat([local, padding]), group).split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(padded, sizes, strict=True)])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        total: Tensor = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def sum_over(value: Tensor, group: Group) -> Tensor:
    """Sum over ranks, with gradient: every rank's loss feels every rank's value."""
    if group.world == 1:
        return value
    summed: Tensor = _Sum.apply(value)
    return summed


def mean_over(value_N: Tensor, group: Group) -> Tensor:
    """Mean over all rows of all ranks, [...] from [N, ...], with gradient; N may differ by rank."""
    rows = sum(counts(len(value_N), group, value_N.device))
    return sum_over(value_N.sum(dim=0), group) / max(rows, 1)


def averages(values: Mapping[str, Tensor], group: Group) -> dict[str, float]:
    """Means over ranks of scalars that every rank has, as numbers, in one message."""
    stacked = torch.stack([value.detach().double().reshape(()) for value in values.values()])
    if group.world > 1:
        dist.all_reduce(stacked)
        stacked /= group.world
    return dict(zip(values, stacked.tolist(), strict=True))
