"""The last block with another attention, with or without its residual and feed-forward part.

    x <- [x +] W_o (A v)        x <- x [+ MLP(LN x)]

The methods of this folder differ in A and in which of the two bracketed terms stay.

Shapes: B pictures, A heads, N tokens, D width, d of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from capwright.dense.training_free.layers import Layers

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v -> A v, each [B, A, N, d]


def last_block(
    layers: Layers, attend: Attend, *, residual: bool, ffn: bool, tokens_BND: Tensor | None = None
) -> Tensor:
    """Tokens in the joint space, [B, P, E], without the prefix.

    `tokens_BND` stands in for the block's input.
    """
    vit, block = layers.vit, layers.last
    x_BND = layers.before(block) if tokens_BND is None else tokens_BND
    out_BND = vit.merge(block, attend(*vit.qkv(block, x_BND)))
    x_BND = x_BND + out_BND if residual else out_BND
    if ffn:
        x_BND = x_BND + vit.mlp(block, x_BND)
    return vit.project(layers.patches(x_BND))


def similarity(one_BANd: Tensor, other_BANd: Tensor) -> Tensor:
    """softmax(a bᵀ / sqrt(d)), [B, A, N, N]."""
    logits = one_BANd @ other_BANd.transpose(-2, -1) * one_BANd.shape[-1] ** -0.5
    return torch.softmax(logits, dim=-1)
