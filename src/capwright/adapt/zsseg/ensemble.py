"""Two opinions of each proposal, joined: the proposal's own classifier and CLIP on its crop.

    seen:   p(q, c) = p_m^w p_c^(1 - w)        unseen: p(q, c) = p_m^(1 - w) p_c^w
    map(c, y, x) = sum_q p(q, c) sigmoid(mask_q(y, x)), and each pixel takes the largest

p_m is the proposal's softmax over the classes and "no object", whose column is left out afterwards;
p_c is CLIP's softmax over the classes, and 1 where the mask is empty. The classifier has learned
the seen classes, so w (0.8 on COCO-Stuff, 0.7 on VOC) trusts it there and CLIP on the unseen ones.

Shapes: Q proposals, C classes, E joint space, H and W pixels.
"""

import torch
from torch import Tensor

from capwright.adapt.zsseg.crops import Regions
from capwright.core.errors import CapwrightError


def proposal_probability(logits_QN: Tensor) -> Tensor:
    """p_m [Q, C] from logits whose last column is "no object"."""
    return logits_QN.softmax(dim=-1)[:, :-1]


def clip_probability(regions: Regions, texts_CE: Tensor, scale: float) -> Tensor:
    """p_c [Q, C]; `scale` is CLIP's own, the inverse of its temperature."""
    if not regions.filled_Q.any():
        return texts_CE.new_ones(len(regions.filled_Q), len(texts_CE))
    probability_QC = (scale * regions.features_QE @ texts_CE.T).softmax(dim=-1)
    return torch.where(regions.filled_Q[:, None], probability_QC, torch.ones_like(probability_QC))


def exponents(is_seen_C: Tensor, weight: float) -> Tensor:
    """The power that each class's p_m is raised to, [C]; p_c's is one minus it."""
    if not 0 <= weight <= 1:
        raise CapwrightError(f"the ensemble weight is {weight}: allowed are 0 to 1, such as 0.8")
    return torch.where(is_seen_C, weight, 1 - weight)


def ensemble(proposal_QC: Tensor, clip_QC: Tensor, exponent_C: Tensor) -> Tensor:
    """p [Q, C], the weighted geometric mean; 0 to the power 0 is 1."""
    return proposal_QC**exponent_C * clip_QC ** (1 - exponent_C)


def class_map(probability_QC: Tensor, masks_QHW: Tensor) -> Tensor:
    """Scores [C, H, W]; `masks_QHW` are sigmoids, 0 to 1. Without proposals all are 0."""
    return torch.einsum("qc,qhw->chw", probability_QC, masks_QHW)
