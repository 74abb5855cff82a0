"""Texts through a causal text tower without what cannot reach the output; the result is the same.

Three exact savings, for towers that pool at the end of the text and let no position see a later:

- no position after the end of the longest text is computed;
- texts are sorted by length and cut into a few groups, each trimmed to its own longest text. The
  cut minimises `tokens computed + cost x groups` by dynamic programming over the different
  lengths, where `cost` is the number of tokens that take as long as starting another group;
- the last block is computed at the end of each text alone, since nothing else of it is read.

Shapes: B texts, L context length, l the longest of a group, D features of a token, E embedding.
"""

from itertools import pairwise
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

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
    one = _at_ends if _plain(tower) else _whole
    if len(cuts) == 2:
        return one(tower, tokens_BL[:, : int(length_B[-1])], end_B)
    order_B = order_B.to(tokens_BL.device)
    parts = []
    for start, stop in pairwise(cuts):
        rows, length = order_B[start:stop], int(length_B[stop - 1])
        parts.append(one(tower, tokens_BL[rows, :length], end_B[rows]))
    return torch.cat(parts)[torch.argsort(order_B)]


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


def _plain(tower: Any) -> bool:
    # sharded, wrapped or compiled blocks must be called as a whole, through their forward
    compiled = getattr(tower, "_compiled_call_impl", None) is not None
    plain = all(type(block) is ResidualAttentionBlock for block in tower.transformer.resblocks)
    return plain and tower.transformer.batch_first and not compiled


def _whole(tower: Any, tokens_Bl: Tensor, end_B: Tensor) -> Tensor:
    mask_LL, length = tower.attn_mask, tokens_Bl.shape[1]
    tower.attn_mask = mask_LL[:length, :length]  # open_clip trims the positions but not the mask
    try:
        embedded: Tensor = tower(tokens_Bl.contiguous())
    finally:
        tower.attn_mask = mask_LL
    return embedded


def _at_ends(tower: Any, tokens_Bl: Tensor, end_B: Tensor) -> Tensor:
    length = tokens_Bl.shape[1]
    mask_ll = tower.attn_mask[:length, :length]
    x_BlD, _ = tower._embeds(tokens_Bl)
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        if tower.transformer.grad_checkpointing:
            x_BlD = checkpoint(block, x_BlD, None, None, mask_ll, use_reentrant=False)
        else:
            x_BlD = block(x_BlD, attn_mask=mask_ll)
    pooled_BD = tower.ln_final(_last_block(last, x_BlD, end_B))
    projection = tower.text_projection
    if projection is None:
        return pooled_BD  # type: ignore[no-any-return]
    embedded: Tensor = projection(pooled_BD) if callable(projection) else pooled_BD @ projection
    return embedded


def _last_block(block: Any, x_BlD: Tensor, end_B: Tensor) -> Tensor:
    """open_clip's residual block at position `end_B` of every text: [B, D]."""
    rows = torch.arange(len(end_B), device=x_BlD.device)
    normed_BlD = block.ln_1(x_BlD)
    later_Bl = torch.arange(x_BlD.shape[1], device=x_BlD.device) > end_B[:, None]
    attended_B1D, _ = block.attn(
        normed_BlD[rows, end_B][:, None],
        normed_BlD,
        normed_BlD,
        need_weights=False,
        key_padding_mask=later_Bl,
    )
    x_BD: Tensor = x_BlD[rows, end_B] + block.ls_1(attended_B1D[:, 0])
    return x_BD + block.ls_2(block.mlp(block.ln_2(x_BD)))  # type: ignore[no-any-return]
