"""Texts through a causal text tower without what cannot reach the output; the result is the same.

Three exact savings, for towers that pool at the end of the text and let no position see a later:

- no position after the end of the longest text is computed;
- texts are sorted by length and cut into a few groups, each trimmed to its own longest text. The
  cut minimises `tokens computed + cost x groups` by dynamic programming over the different
  lengths, where `cost` is the number of tokens that take as long as starting another group;
- the last block is computed at the end of each text alone (pooled_position.py).

Shapes: B texts, L context length, l the longest of a group, D features of a token, E embedding.
"""

from itertools import pairwise
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from capwright.models import pooled_position

# tokens that take as long as one more group: measured on a CPU, estimated for a GPU (it is the
# time of starting kernels there)
GROUP_COST_CPU, GROUP_COST_GPU = 64, 4096


def ends(tower: Any, tokens_BL: Tensor) -> Tensor | None:
    """Position of every text that the tower pools at, [B]; None for a tower that reads more."""
    causal = isinstance(tower, TextTransformer) and tower.attn_mask is not None
    if not causal or tower.cls_emb is not None or tower.output_tokens:
        return None
    end_B: Tensor | None = None
    if tower.pool_type == "argmax":
        end_B = tokens_BL.argmax(dim=1)
    elif tower.pool_type == "eos":
        end_B = (tokens_BL == tower.eos_id).int().argmax(dim=1)
    return end_B


def encode(tower: Any, tokens_BL: Tensor, end_B: Tensor) -> Tensor:
    """What `tower(tokens_BL)` gives, [B, E]; `end_B` comes from `ends`."""
    length_B, order_B = torch.sort(end_B.cpu() + 1, stable=True)
    if any(isinstance(module, FSDPModule) for module in tower.modules()):
        cuts = [0, len(length_B)]  # every process must pass each block equally often
    else:
        cost = GROUP_COST_CPU if tokens_BL.device.type == "cpu" else GROUP_COST_GPU
        cuts = cut_by_length(length_B, cost)
    rows_of = [order_B[start:stop].to(tokens_BL.device) for start, stop in pairwise(cuts)]
    lengths = [int(length_B[stop - 1]) for stop in cuts[1:]]
    if pooled_position.readable(tower):
        # all at once: the gradient of the embedding table is as large as the table
        x_BlD, _ = tower._embeds(tokens_BL[:, : lengths[-1]])
        parts = [
            _at_ends(tower, x_BlD[rows, :length], end_B[rows])
            for rows, length in zip(rows_of, lengths, strict=True)
        ]
    else:
        parts = [
            _whole(tower, tokens_BL[rows, :length])
            for rows, length in zip(rows_of, lengths, strict=True)
        ]
    return torch.cat(parts)[torch.argsort(order_B).to(tokens_BL.device)]


def cut_by_length(length_B: Tensor, cost: int) -> list[int]:
    """Where to cut texts, sorted by rising length, into groups: [0, ..., B]."""
    longest, counts = torch.unique_consecutive(length_B, return_counts=True)
    lengths, stops = longest.tolist(), [0, *counts.cumsum(0).tolist()]
    best, before = [0.0], [0]
    for group_end in range(1, len(stops)):
        tried = [
            best[i] + (stops[group_end] - stops[i]) * lengths[group_end - 1] + cost
            for i in range(group_end)
        ]
        before.append(min(range(group_end), key=tried.__getitem__))
        best.append(tried[before[-1]])
    cuts, at = [stops[-1]], len(stops) - 1
    while at:
        at = before[at]
        cuts.append(stops[at])
    return cuts[::-1]


def _whole(tower: Any, tokens_Bl: Tensor) -> Tensor:
    mask_LL, length = tower.attn_mask, tokens_Bl.shape[1]
    tower.attn_mask = mask_LL[:length, :length]  # open_clip trims the positions but not the mask
    try:
        embedded: Tensor = tower(tokens_Bl.contiguous())
    finally:
        tower.attn_mask = mask_LL
    return embedded


def _at_ends(tower: Any, x_BlD: Tensor, end_B: Tensor) -> Tensor:
    length = x_BlD.shape[1]
    later_Bl = torch.arange(length, device=x_BlD.device) > end_B[:, None]
    mask_ll = tower.attn_mask[:length, :length]
    x_BD = pooled_position.read(
        tower.transformer, x_BlD, end_B, mask_ll=mask_ll, unseen_Bl=later_Bl
    )
    pooled_BD = tower.ln_final(x_BD)
    projection = tower.text_projection
    if projection is None:
        return pooled_BD  # type: ignore[no-any-return]
    embedded: Tensor = projection(pooled_BD) if callable(projection) else pooled_BD @ projection
    return embedded
