"""Many processes train one task: each with the whole of it (DDP), or each with a shard (FSDP2).

Both hook into the task's `forward`, average gradients over processes while the backward pass goes
on, and can wait with that until the last part of an accumulated batch. Wholes and shards write the
same checkpoints, so a run may go on with another number of processes or in the other mode."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from capwright.pretrain.distributed import Group

KEEP_BUFFERS = (  # the newer name of the option warns about the older one
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
BLOCKS = ("resblocks", "blocks", "stages", "layers", "layer")  # what towers call their depth


def wrap(
    task: nn.Module, mode: Literal["ddp", "fsdp"], group: Group, *, all_used: bool = True
) -> nn.Module:
    """The task as many processes train it; `all_used` says that every step uses all parameters."""
    if group.world == 1:
        return task
    _share_statistics(task)
    if mode == "ddp":
        device = next(task.parameters()).device
        options: dict[str, Any] = {KEEP_BUFFERS: False}  # `_share_statistics` sends what differs
        if device.type == "cuda":
            options["device_ids"] = [device.index]
        return DistributedDataParallel(task, find_unused_parameters=not all_used, **options)
    whole = scalars(task)
    for name, module in reversed(list(task.named_modules())):  # blocks before their stage
        if name.rpartition(".")[2] in BLOCKS and isinstance(module, nn.ModuleList | nn.Sequential):
            for block in module:
                if list(block.children()) and any(True for _ in block.parameters()):
                    fully_shard(block)
    fully_shard(task, ignored_params=whole)
    return task


def _share_statistics(task: nn.Module) -> None:
    """Before each pass, batch norms take over the running statistics of the first process.

    Every process moves them by its own pictures, a teacher answers by them, and a checkpoint holds
    those of the first. `nn.SyncBatchNorm` has computed them alike.
    """
    norms = [m for m in task.modules() if isinstance(m, _BatchNorm)]
    found = [(m.running_mean, m.running_var) for m in norms if not isinstance(m, nn.SyncBatchNorm)]
    statistics = [value for pair in found for value in pair if value is not None]
    sizes = [len(value) for value in statistics]

    @torch.no_grad()
    def share(*_: Any) -> None:
        whole = torch.cat(statistics)
        dist.broadcast(whole, 0)
        for own, first in zip(statistics, whole.split(sizes), strict=True):
            own.copy_(first)

    if statistics:
        task.register_forward_pre_hook(share)


def scalars(task: nn.Module) -> set[nn.Parameter]:
    """Parameters without a dimension, such as the logit scale: they cannot be cut in shards."""
    return {parameter for parameter in task.parameters() if parameter.ndim == 0}


def inner(wrapped: nn.Module) -> Any:
    """The task inside; calling it does not make processes wait for a backward pass."""
    return wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped


@contextmanager
def averaging(wrapped: nn.Module, *, now: bool) -> Iterator[None]:
    """Inside the block, backward passes average gradients over processes, or (not `now`) sum up."""
    if isinstance(wrapped, DistributedDataParallel) and not now:
        with wrapped.no_sync():
            yield
        return
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(now)
    yield


def average_scalars(wrapped: nn.Module, group: Group) -> None:
    """Average the gradients that shards leave to the caller; DDP has done all of them."""
    if not isinstance(wrapped, FSDPModule):
        return
    for parameter in wrapped.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= group.world


def clip(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients down where their common norm is above `max_norm`; returns the norm.

    Sharded gradients and whole ones are not mixed in one operation.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    sharded = [g for g in grads if isinstance(g, DTensor)]
    kinds = [kind for kind in (sharded, [g for g in grads if not isinstance(g, DTensor)]) if kind]
    norms = [full(nn.utils.get_total_norm(kind)) for kind in kinds]
    norm = torch.stack(norms).norm() if norms else torch.zeros(())
    for kind in kinds:
        for grad in kind:
            grad.mul_(max_norm / norm) if norm > max_norm else None
    return float(norm)


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(target: Tensor, whole: Tensor) -> None:
    """Write a whole tensor into one that may be sharded."""
    if isinstance(target, DTensor):
        whole = distribute_tensor(whole.to(target.device), target.device_mesh, target.placements)
    target.copy_(whole)
