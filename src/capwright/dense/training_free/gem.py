"""GEM (arXiv 2312.00878): self-self attention in a path beside the last blocks.

In each of the last six blocks, for p in (q, k, v) of the tokens of the usual path:

    p <- p / |p|,   p <- A_p p / |A_p p| once,   A_p = softmax(t p pᵀ),   t = mean |x| / sqrt(d)
    y <- y + W_o (A_q v + A_k v + A_v v) / 3

where y starts as the input of the first of them, x are the block's normalised tokens, and |x| is
averaged over the tokens of a picture. The path beside has no feed-forward parts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.dense.training_free.layers import Layers

BLOCKS, ROUNDS = 6, 1


def features(layers: Layers, texts_QE: Tensor) -> Tensor:
    """Patches in the joint space, [B, P, E]."""
    vit = layers.vit
    first = max(0, vit.depth - BLOCKS)
    y_BND = layers.before(first)
    for block in range(first, vit.depth):
        x_BND = vit.norm1(block, layers.before(block))
        heads = vit.heads_of(block, x_BND)
        scale_B = x_BND.norm(dim=-1).mean(dim=-1) * heads[0].shape[-1] ** -0.5
        maps = torch.stack([self_self(part, scale_B) for part in heads])
        mixed = maps.mean(dim=0) @ heads[2]
        y_BND = y_BND + vit.merge(block, mixed)
    return vit.project(layers.patches(y_BND))


def self_self(part_BANd: Tensor, scale_B: Tensor) -> Tensor:
    """A_p, [B, A, N, N]."""
    unit = F.normalize(part_BANd, dim=-1)
    for _ in range(ROUNDS):
        unit = F.normalize(_map(unit, scale_B) @ unit, dim=-1)
    return _map(unit, scale_B)


def _map(unit_BANd: Tensor, scale_B: Tensor) -> Tensor:
    logits = unit_BANd @ unit_BANd.transpose(-2, -1)
    return torch.softmax(logits * scale_B[:, None, None, None], dim=-1)
