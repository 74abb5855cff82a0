"""SCLIP (arXiv 2312.01597): correlative self-attention in the last block.

    A = softmax(q qᵀ / sqrt(d)) + softmax(k kᵀ / sqrt(d))

The rows of A sum to 2: it is a sum, not a mean. Residual and feed-forward part stay. On large
towers (L/14) this collapses; ClearCLIP's reduction does not.
"""

from torch import Tensor

from capwright.dense.training_free.last_block import last_block, similarity
from capwright.dense.training_free.layers import Layers


def features(
    layers: Layers, texts_QE: Tensor, *, residual: bool = True, ffn: bool = True
) -> Tensor:
    """Patches in the joint space, [B, P, E]."""
    return last_block(layers, lambda q, k, v: attention(q, k) @ v, residual=residual, ffn=ffn)


def attention(q_BANd: Tensor, k_BANd: Tensor) -> Tensor:
    """A, [B, A, N, N]."""
    return similarity(q_BANd, q_BANd) + similarity(k_BANd, k_BANd)
