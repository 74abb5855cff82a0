"""ResCLIP (arXiv 2411.15851): the attention of middle blocks, and of places with the same label.

    A = τ ((1 - λ) A_last + λ A_mid)

A_last is NACLIP's attention, A_mid the mean of the usual attention over blocks 6 to 9 of 12. A
first pass labels every patch by its nearest text; the second one uses

    A <- (1 - μ) A + μ S,    S_ij = τ / n where patches i and j share a label that n patches have

No residual, no feed-forward part. λ, μ and τ are one setting here for all data; the paper chose
them for each data set. How S is scaled is our reading.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.dense.training_free import naclip
from capwright.dense.training_free.last_block import last_block, similarity
from capwright.dense.training_free.layers import Layers

MIDDLE = (5, 6, 7, 8)  # of 12 blocks, counted from 0
TEMPERATURE, MIDDLE_WEIGHT, LABEL_WEIGHT = 2.0, 0.5, 0.6


def features(
    layers: Layers, texts_QE: Tensor, *, residual: bool = False, ffn: bool = False
) -> Tensor:
    """Patches in the joint space, [B, P, E]."""
    middle_BANN = middle_attention(layers)

    def attend(k_BANd: Tensor) -> Tensor:
        last = naclip.attention(layers, k_BANd)
        return TEMPERATURE * ((1 - MIDDLE_WEIGHT) * last + MIDDLE_WEIGHT * middle_BANN)

    first_BPE = last_block(layers, lambda q, k, v: attend(k) @ v, residual=residual, ffn=ffn)
    labels_BP = (F.normalize(first_BPE, dim=-1) @ texts_QE.T).argmax(dim=-1)
    same_B1NN = TEMPERATURE * same_label(labels_BP, layers.vit.prefix, first_BPE.dtype)

    def again(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((1 - LABEL_WEIGHT) * attend(k) + LABEL_WEIGHT * same_B1NN) @ v

    return last_block(layers, again, residual=residual, ffn=ffn)


def middle_attention(layers: Layers) -> Tensor:
    """Mean of the usual attention over the middle blocks, [B, A, N, N]."""
    blocks = [layers.scaled(block) for block in MIDDLE]
    maps = [layers.vit.qkv(block, layers.before(block))[:2] for block in blocks]
    return torch.stack([similarity(q, k) for q, k in maps]).mean(dim=0)


def same_label(labels_BP: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """Rows of equal weights over the patches with the same label, [B, 1, N, N]; no prefix."""
    same_BPP = (labels_BP[:, :, None] == labels_BP[:, None]).to(dtype)
    share_BPP = same_BPP / same_BPP.sum(dim=-1, keepdim=True)
    return F.pad(share_BPP, (prefix, 0, prefix, 0))[:, None]
