"""ClearCLIP (arXiv 2407.12442): query-query attention, no residual, no feed-forward part.

    A = softmax(q qᵀ / sqrt(d)),    x = W_o (A v)

The residual carries global noise into the patches; large towers need this reduction most.
"""

from torch import Tensor

from capwright.dense.training_free.last_block import last_block, similarity
from capwright.dense.training_free.layers import Layers


def features(
    layers: Layers, texts_QE: Tensor, *, residual: bool = False, ffn: bool = False
) -> Tensor:
    """Patches in the joint space, [B, P, E]."""
    return last_block(layers, lambda q, k, v: similarity(q, q) @ v, residual=residual, ffn=ffn)
