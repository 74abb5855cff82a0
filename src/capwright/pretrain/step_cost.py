"""What one step costs, measured: operations, and bytes that wait for the backward pass.

Real pictures go forward and backward through a copy of the task while operations are counted
(`torch.utils.flop_counter`: matrix products and convolutions, two operations a multiplication) and
the tensors that autograd keeps are weighed. Two tiny batches give what a picture costs and what
every pass costs; a step of B pictures is on the line through both. What grows with B x B, the
similarities, is too small to matter until the batch is huge, and is left out.

Shapes: B pictures, U different captions, P pairs, L context length.
"""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from capwright.models import text_groups
from capwright.pretrain.batch import Batch
from capwright.pretrain.distributed import ALONE
from capwright.pretrain.objectives.captioning import lengths, pad_id
from capwright.pretrain.precision import Precision, arithmetic, plain_attention
from capwright.pretrain.task import Losses, Task

TINY = 2  # pictures of the smaller batch that is measured; the other has twice as many


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The captions of one batch of one process."""

    captions: int  # different ones
    mean: float  # tokens of a caption, with start and end
    computed: float  # positions that the text tower computes for a caption, on average
    context: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one pass of one process forward and backward."""

    forward: float  # FLOP
    backward: float  # FLOP; activations that are computed twice count here
    kept: float  # bytes between the forward and the backward pass

    def line(self, other: "Cost", measured: int, pictures: float) -> "Cost":
        """The cost of so many pictures, if this is that of `measured` and the other of twice it."""
        slope = (pictures - measured) / measured
        values = {k: max(v, v + (getattr(other, k) - v) * slope) for k, v in vars(self).items()}
        return Cost(**values) if pictures >= measured else self


def count_tokens(model: Any, tokens_UL: Tensor) -> Tokens:
    """Tokens of a batch's captions, and how many positions the text tower computes."""
    captions, context = tokens_UL.shape
    if not captions:
        return Tokens(captions=0, mean=0.0, computed=0.0, context=context)
    end_U, computed = text_groups.ends(model.text, tokens_UL), captions * context
    if end_U is not None:
        length_U = end_U.cpu().sort().values + 1
        on_cpu = tokens_UL.device.type == "cpu"
        cost = text_groups.GROUP_COST_CPU if on_cpu else text_groups.GROUP_COST_GPU
        cuts = text_groups.cut_by_length(length_U, cost)
        computed = sum((stop - first) * int(length_U[stop - 1]) for first, stop in pairwise(cuts))
    return Tokens(
        captions=captions,
        mean=float(lengths(tokens_UL, pad_id(model)).double().mean()),
        computed=computed / captions,
        context=context,
    )


def measure_step(
    task: Task, batch: Batch, pictures: float, precision: Precision, device: torch.device
) -> Cost:
    """The cost of a pass over so many pictures, from two tiny batches of those of `batch`.

    Nothing that trains is touched: a copy of the task does the work, torch's random state is kept.
    """
    length_U = lengths(batch.tokens_UL, pad_id(task.model)).double()
    usual = count_tokens(task.model, batch.tokens_UL).computed
    copied = copy.deepcopy(task)
    few = [_few(batch, length_U, usual, count) for count in (TINY, 2 * TINY)]
    small = measure(copied, few[0], precision, device)
    if pictures <= TINY or batch.pictures < 2 * TINY:
        return small
    large = measure(copied, few[1], precision, device)
    return small.line(large, TINY, pictures)


def measure(task: Task, batch: Batch, precision: Precision, device: torch.device) -> Cost:
    """Go forward and backward once; leaves gradients in the task."""
    kept = _Kept(task)
    devices = [device] if device.type == "cuda" else []
    attention = plain_attention() if device.type == "cpu" else nullcontext()
    with (
        torch.random.fork_rng(devices=devices),
        attention,
        FlopCounterMode(display=False) as counter,
        saved_tensors_hooks(kept.pack, kept.unpack),
    ):
        with arithmetic(precision, device):
            losses: Losses = task.losses(batch, ALONE)
        forward = counter.get_total_flops()
        weight = kept.bytes
        losses.total.backward()
        total = counter.get_total_flops()
    task.zero_grad(set_to_none=True)
    return Cost(forward=forward, backward=total - forward, kept=weight)


class _Kept:
    """Weighs what autograd keeps, each piece of memory once, without the parameters."""

    def __init__(self, task: nn.Module) -> None:
        self._own = {p.untyped_storage().data_ptr() for p in task.parameters()}
        self._sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold on to its own graph

    @staticmethod
    def unpack(tensor: Tensor) -> Tensor:
        return tensor


def _few(batch: Batch, length_U: Tensor, usual: float, pictures: int) -> Batch:
    """The pictures with captions of nearest to the usual length, as a batch."""
    device = length_U.device
    ones_P = torch.ones_like(batch.pair_picture_P, dtype=length_U.dtype)
    captions_B = length_U.new_zeros(batch.pictures).index_add(0, batch.pair_picture_P, ones_P)
    sum_B = length_U.new_zeros(batch.pictures).index_add(
        0, batch.pair_picture_P, length_U[batch.pair_text_P]
    )
    unusual_B = (sum_B / captions_B - usual).abs().nan_to_num(torch.inf)  # without captions: last
    row_B = unusual_B.argsort(stable=True)[:pictures]
    return chosen(batch, row_B.to(device))


def chosen(batch: Batch, row_B: Tensor) -> Batch:
    """The batch of some of its pictures."""
    place_B = torch.full((batch.pictures,), -1, device=row_B.device)
    place_B[row_B] = torch.arange(len(row_B), device=row_B.device)
    mine_P = place_B[batch.pair_picture_P] >= 0
    used_U, text_P = batch.pair_text_P[mine_P].unique(return_inverse=True)
    return replace(
        batch,
        images_BV3HH=batch.images_BV3HH[row_B],
        tokens_UL=batch.tokens_UL[used_U],
        text_ids_U=batch.text_ids_U[used_U],
        pair_picture_P=place_B[batch.pair_picture_P[mine_P]],
        pair_text_P=text_P,
        pair_set_P=batch.pair_set_P[mine_P],
        sample_ids_B=batch.sample_ids_B[row_B],
        patch_order_BN=batch.patch_order_BN[row_B],
        extras={name: value[row_B] for name, value in batch.extras.items()},
    )


def number(value: float) -> str:
    """Three digits and a unit: `4.2 k`, `86.6 M`, `1.5 P`."""
    units, at = ("", "k", "M", "G", "T", "P", "E", "Z", "Y"), 0
    while value >= 999.5 and at < len(units) - 1:
        value, at = value / 1000, at + 1
    return f"{f'{value:.3g}' if value < 100 else f'{value:.0f}'} {units[at]}"
