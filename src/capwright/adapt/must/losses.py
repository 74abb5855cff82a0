"""The four losses of MUST (Li et al., arXiv 2206.02967, section 3), from tensors alone.

With q the teacher's prediction of the weak view and p the student's of the strong one:
    L_st    = mean over pictures with max q > tau of -log p[argmax q]        0 where there is none
    L_fair  = -1/C sum_c log p'_c          p' = mean p over the batch of all processes
              with a share r of earlier batches p' <- r old + (1 - r) new, and L_fair / (1 - r)
    L_mim   = mean |predicted - true| over the normalised pixels of hidden patches
    L_align = mean over hidden patches of |z_patch - z_picture|^2            both unit vectors
Means are over all processes, with gradient through all of them, so that two processes with half of
the batch each have the loss of one with the whole.

L_fair is computed from log p, by log-sum-exp, so that a class that no picture is given a chance of
has a large loss and not an infinite one.

Shapes: B pictures of this process, N of all, C classes, P patches, E embedding, S pixels a side.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.pretrain.distributed import ALONE, Group, gather, mean_over, sum_over


def pseudo_labels(logits_BC: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """(the teacher's class of every picture, whether its confidence is above the threshold)."""
    confidence_B, labels_B = logits_BC.detach().float().softmax(dim=-1).max(dim=-1)
    return labels_B, confidence_B > threshold


def self_training_loss(
    logits_BC: Tensor, labels_B: Tensor, sure_B: Tensor, group: Group = ALONE
) -> Tensor:
    """Cross-entropy over the sure pictures of all processes; 0 with a gradient of 0 for none."""
    loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
    total = sum_over((loss_B * sure_B).sum(), group)
    return total / sum_over(sure_B.sum(), group).clamp_min(1)


def fairness_loss(
    logits_BC: Tensor, earlier_C: Tensor | None = None, kept: float = 0.0, group: Group = ALONE
) -> tuple[Tensor, Tensor]:
    """(loss, log of the mean prediction [C] for the next step, without gradient).

    `earlier_C` is what the step before returned; None begins anew and keeps nothing.
    """
    log_p_NC = gather(logits_BC.log_softmax(dim=-1), group)
    mean_C = log_p_NC.logsumexp(dim=0) - math.log(len(log_p_NC))
    if earlier_C is None or kept == 0:
        return -mean_C.mean(), mean_C.detach()
    both_C = torch.logaddexp(earlier_C + math.log(kept), mean_C + math.log1p(-kept))
    return -both_C.mean() / (1 - kept), both_C.detach()


def masked_image_loss(
    predicted_B3SS: Tensor, images_B3SS: Tensor, hidden_Bhw: Tensor, group: Group = ALONE
) -> Tensor:
    """Mean absolute error over the pixels of hidden patches; 0 where nothing is hidden."""
    height, width = images_B3SS.shape[-2:]
    side = height // hidden_Bhw.shape[-2], width // hidden_Bhw.shape[-1]
    hidden_BHW = hidden_Bhw.repeat_interleave(side[0], 1).repeat_interleave(side[1], 2)
    error_BHW = (predicted_B3SS - images_B3SS).abs().mean(dim=1) * hidden_BHW
    return _mean_of_hidden(error_BHW, hidden_BHW, group)


def alignment_loss(
    patches_BPE: Tensor, pictures_BE: Tensor, hidden_BP: Tensor, group: Group = ALONE
) -> Tensor:
    """Mean squared distance of hidden patches from their picture; 0 where nothing is hidden."""
    distance_BP = (patches_BPE - pictures_BE[:, None]).square().sum(dim=-1) * hidden_BP
    return _mean_of_hidden(distance_BP, hidden_BP, group)


def _mean_of_hidden(error: Tensor, hidden: Tensor, group: Group) -> Tensor:
    """Sum of [B, ...] over how many are hidden, of all processes."""
    total = sum_over(error.sum(), group)
    return total / sum_over(hidden.sum(), group).clamp_min(1)


def share(chosen_B: Tensor, group: Group = ALONE) -> Tensor:
    """Share of the pictures of all processes that are chosen."""
    return mean_over(chosen_B.float(), group)
