"""SC-CLIP (arXiv 2411.15869): a CLIP that calibrates itself, without any other model.

1. Anomalies: the 5% of patches of block 11 with the largest local outlier factor are replaced by
   the mean of their sound neighbours.
2. With R the cosine similarity of the repaired patches of block 9: what is below β is set to zero,
   rows are normalised, and the repaired patches are averaged with these weights.
3. Last block without residual and feed-forward part, A = (softmax_+(3 (R - mean R)) +
   softmax(k kᵀ / sqrt(d))) / 2, where softmax_+ leaves out what is negative; 0.3 times the class
   token of block 11 is added.
4. Averaged again with the similarity of block 4.
5. The sum of the outputs of blocks 4 to 10 goes through 3 and 4 as well, and both are added.

Attention is between patches alone. Towers without a class token use the mean of the patches.

Shapes: B pictures, P patches, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.dense.training_free.last_block import similarity
from capwright.dense.training_free.layers import Layers
from capwright.dense.training_free.outliers import repair, strangest

ANOMALIES, NEIGHBOURS = 0.05, 30
SHARP, WHOLE, LEAST = 3.0, 0.3, 0.4  # of R in the softmax, of the class token, β
MIDDLE, LOW, SUMMED = 8, 3, range(3, 10)  # of 12 blocks, counted from 0; summed: outputs


def features(layers: Layers, texts_QE: Tensor) -> Tensor:
    """Patches in the joint space, [B, P, E]."""
    x_BND = layers.before(layers.last)
    broken_BP = strangest(layers.patches(x_BND), share=ANOMALIES, neighbours=NEIGHBOURS)

    def sound(tokens_BND: Tensor) -> Tensor:
        return repair(layers.patches(tokens_BND), broken_BP, layers.grid)

    middle_BPP = cosine(sound(layers.after(layers.scaled(MIDDLE))))
    low_BPP = cosine(sound(layers.after(layers.scaled(LOW))))
    single_BPD = gather(sound(x_BND), middle_BPP)
    out_BPD = gather(calibrated(layers, single_BPD, x_BND, middle_BPP), low_BPP)
    blocks = sorted({min(layers.scaled(block), layers.last - 1) for block in SUMMED})
    several_BND = torch.stack([layers.after(block) for block in blocks]).sum(dim=0)
    summed_BPD = calibrated(layers, layers.patches(several_BND), several_BND, middle_BPP)
    return layers.vit.project(out_BPD + gather(summed_BPD, low_BPP))


def calibrated(
    layers: Layers, patches_BPD: Tensor, tokens_BND: Tensor, similarity_BPP: Tensor
) -> Tensor:
    """Step 3: the last block of the patches, and a part of the whole picture's token."""
    vit, block = layers.vit, layers.last
    _, k, v = vit.qkv(block, patches_BPD)
    centred_BPP = similarity_BPP - similarity_BPP.mean(dim=(1, 2), keepdim=True)
    wanted_BPP = (SHARP * centred_BPP).masked_fill(centred_BPP < 0, -torch.inf)
    attention_BAPP = (torch.softmax(wanted_BPP, dim=-1)[:, None] + similarity(k, k)) / 2
    return vit.merge(block, attention_BAPP @ v) + WHOLE * layers.whole(tokens_BND)


def cosine(patches_BPD: Tensor) -> Tensor:
    """Cosine similarity of patches, [B, P, P]."""
    unit = F.normalize(patches_BPD, dim=-1)
    return unit @ unit.transpose(1, 2)


def gather(patches_BPD: Tensor, similarity_BPP: Tensor) -> Tensor:
    """Patches averaged over what is at least β similar to them."""
    kept_BPP = similarity_BPP.masked_fill(similarity_BPP < LEAST, 0)
    return kept_BPP / kept_BPP.sum(dim=-1, keepdim=True) @ patches_BPD
