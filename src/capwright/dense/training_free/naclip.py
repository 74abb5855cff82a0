"""NACLIP (arXiv 2404.08181): key-key attention that prefers the neighbourhood.

    A = softmax(k kᵀ / sqrt(d) + w),    w_ij = exp(-|p_i - p_j|² / (2 s²)) between patches

p are places on the grid, s = 5 patches. No residual, no feed-forward part.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.dense.training_free.last_block import last_block
from capwright.dense.training_free.layers import Layers

SPREAD = 5.0  # patches


def features(
    layers: Layers,
    texts_QE: Tensor,
    *,
    spread: float = SPREAD,
    residual: bool = False,
    ffn: bool = False,
) -> Tensor:
    """Patches in the joint space, [B, P, E]."""
    return last_block(
        layers, lambda q, k, v: attention(layers, k, spread) @ v, residual=residual, ffn=ffn
    )


def attention(layers: Layers, k_BANd: Tensor, spread: float = SPREAD) -> Tensor:
    """A, [B, A, N, N]; the prefix gets no window."""
    near_PP = torch.exp(-layers.distances().to(k_BANd.dtype) / (2 * spread**2))
    prefix = layers.vit.prefix
    window_NN = F.pad(near_PP, (prefix, 0, prefix, 0))
    logits = k_BANd @ k_BANd.transpose(-2, -1) * k_BANd.shape[-1] ** -0.5
    return torch.softmax(logits + window_NN, dim=-1)
