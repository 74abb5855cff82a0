"""MaskCLIP (arXiv 2112.01071): the last block's values as they are, without any mixing.

    A = I

Residual and feed-forward part stay by default; both are switches of the harness (`last_block.py`).
"""

from torch import Tensor

from capwright.dense.training_free.last_block import last_block
from capwright.dense.training_free.layers import Layers


def features(
    layers: Layers, texts_QE: Tensor, *, residual: bool = True, ffn: bool = True
) -> Tensor:
    """Patches in the joint space, [B, P, E]."""
    return last_block(layers, lambda q, k, v: v, residual=residual, ffn=ffn)
