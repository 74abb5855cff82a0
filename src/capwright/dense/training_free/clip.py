"""CLIP as it is (arXiv 2103.00020): every patch token of the last block, compared with the texts.

    A = softmax(q kᵀ / sqrt(d))

The baseline of all methods here. The last block was trained for its pooled output, so what its
patches say about their own place is weak.
"""

from torch import Tensor

from capwright.dense.training_free.layers import Layers


def features(layers: Layers, texts_QE: Tensor) -> Tensor:
    """Patches in the joint space, [B, P, E]."""
    return layers.vit.project(layers.patches(layers.after(layers.last)))
