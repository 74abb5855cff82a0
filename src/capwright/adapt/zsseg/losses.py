"""What the proposals learn from: MaskFormer's matching and losses, over labelled pixels alone.

Every class of a picture is one target mask. Proposals are matched to targets one to one so that the
sum of costs is least (Hungarian method), and a matched pair is taught

    cost(q, m) = -p_q(class of m) + 20 focal(q, m) + dice(q, m)
    loss = CE + 20 focal + dice

where CE goes over all proposals, the unmatched ones as "no object" with weight 0.1, and focal and
dice over the matched pairs, divided by the number of targets in the batch. Focal is RetinaNet's
(alpha 0.25, gamma 2), a mean over pixels; dice is 1 - (2 |ab| + 1) / (|a| + |b| + 1).

Pixels that are not labelled, as those of unseen classes are while learning, are left out of costs
and losses: no mask is taught to cover or to spare them. (MaskFormer counts them as outside of every
mask; with every pixel labelled the numbers here are those of transformers' MaskFormerLoss.) A
picture without a labelled pixel teaches nothing.

Shapes: B pictures, Q proposals, C classes, N = C + 1, T targets of a picture, h and w of the masks,
H and W of the labels, P labelled pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from capwright.datasets.sets import IGNORE

ALPHA, GAMMA = 0.25, 2.0
LEFT_OUT = -100  # a class that torch's cross-entropy takes no notice of


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Of the terms, in the costs of the matching as in the loss."""

    classes: float = 1.0
    focal: float = 20.0
    dice: float = 1.0
    no_object: float = 0.1  # of a proposal that is matched to nothing


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is labelled in a picture."""

    classes_T: Tensor
    masks_THW: Tensor  # float, 0 or 1
    labelled_HW: Tensor  # bool


def targets_of(seg_HW: Tensor) -> Targets:
    """The classes of a picture with their masks."""
    labelled_HW = seg_HW != IGNORE
    classes_T = torch.unique(seg_HW[labelled_HW]).long()
    masks_THW = (seg_HW[None] == classes_T[:, None, None]).float()
    return Targets(classes_T=classes_T, masks_THW=masks_THW, labelled_HW=labelled_HW)


def proposal_loss(
    logits_BQN: Tensor, masks_BQhw: Tensor, targets: Sequence[Targets], weights: LossWeights
) -> Tensor:
    """Loss of one layer's proposals, a scalar; `masks_BQhw` are logits.

    Costs are taken at the masks' own size, on labels of the nearest pixel; losses at the labels'.
    """
    batch, queries, columns = logits_BQN.shape
    wanted_BQ = logits_BQN.new_full((batch, queries), columns - 1, dtype=torch.long)
    focal, dice = logits_BQN.new_zeros(()), logits_BQN.new_zeros(())
    for picture, target in enumerate(targets):
        if not len(target.classes_T):
            wanted_BQ[picture] = LEFT_OUT
            continue
        masks_QP, truth_TP = _at_size_of_masks(masks_BQhw[picture], target)
        costs_QT = pair_costs(logits_BQN[picture], masks_QP, target.classes_T, truth_TP, weights)
        chosen, of = (torch.as_tensor(i) for i in linear_sum_assignment(costs_QT.cpu().numpy()))
        wanted_BQ[picture, chosen] = target.classes_T[of.to(wanted_BQ.device)]
        masks_KP, truth_KP = _at_size_of_labels(masks_BQhw[picture, chosen], target, of)
        focal = focal + focal_loss(masks_KP, truth_KP).sum()
        dice = dice + dice_loss(masks_KP, truth_KP).sum()
    number = max(1, sum(len(target.classes_T) for target in targets))
    classes = class_loss(logits_BQN, wanted_BQ, weights.no_object)
    return weights.classes * classes + (weights.focal * focal + weights.dice * dice) / number


def class_loss(logits_BQN: Tensor, wanted_BQ: Tensor, no_object: float) -> Tensor:
    """Cross-entropy, a mean in which the last column's rows count `no_object` each."""
    if bool((wanted_BQ == LEFT_OUT).all()):
        return logits_BQN.sum() * 0.0
    weight_N = logits_BQN.new_ones(logits_BQN.shape[-1])
    weight_N[-1] = no_object
    rows = (logits_BQN.flatten(0, 1), wanted_BQ.flatten())
    return F.cross_entropy(*rows, weight_N, ignore_index=LEFT_OUT)


def focal_loss(masks_KP: Tensor, truth_KP: Tensor) -> Tensor:
    """One number a pair, [K]: the mean over pixels."""
    loss_KP: Tensor = sigmoid_focal_loss(masks_KP, truth_KP, alpha=ALPHA, gamma=GAMMA)
    return loss_KP.mean(dim=1)


def dice_loss(masks_KP: Tensor, truth_KP: Tensor) -> Tensor:
    """One number a pair, [K]."""
    inside_KP = masks_KP.sigmoid()
    both_K = 2 * (inside_KP * truth_KP).sum(dim=1)
    return 1 - (both_K + 1) / (inside_KP.sum(dim=1) + truth_KP.sum(dim=1) + 1)


@torch.no_grad()
def pair_costs(
    logits_QN: Tensor, masks_QP: Tensor, classes_T: Tensor, truth_TP: Tensor, weights: LossWeights
) -> Tensor:
    """What each pair would cost, [Q, T]; a number that is not finite is the largest there is."""
    pixels = max(1, masks_QP.shape[1])
    ones, zeros = torch.ones_like(masks_QP), torch.zeros_like(masks_QP)
    options = {"alpha": ALPHA, "gamma": GAMMA}
    as_inside = sigmoid_focal_loss(masks_QP, ones, **options)
    as_outside = sigmoid_focal_loss(masks_QP, zeros, **options)
    focal_QT = (as_inside @ truth_TP.T + as_outside @ (1 - truth_TP).T) / pixels
    inside_QP = masks_QP.sigmoid()
    size_QT = inside_QP.sum(dim=1)[:, None] + truth_TP.sum(dim=1)
    dice_QT = 1 - (2 * inside_QP @ truth_TP.T + 1) / (size_QT + 1)
    class_QT = -logits_QN.softmax(dim=-1)[:, classes_T]
    costs_QT = weights.focal * focal_QT + weights.dice * dice_QT + weights.classes * class_QT
    most = torch.finfo(costs_QT.dtype).max
    return torch.nan_to_num(costs_QT, nan=most, posinf=most, neginf=most)


def _at_size_of_masks(masks_Qhw: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
    """Logits [Q, P] and truth [T, P] at the labelled pixels, at the masks' size."""
    size = masks_Qhw.shape[-2:]
    truth_Thw = F.interpolate(target.masks_THW[None], size=size, mode="nearest")[0]
    labelled = target.labelled_HW[None, None].float()
    labelled_hw = F.interpolate(labelled, size=size, mode="nearest")[0, 0] > 0
    return masks_Qhw.detach()[:, labelled_hw], truth_Thw[:, labelled_hw]


def _at_size_of_labels(masks_Khw: Tensor, target: Targets, of: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and truth of the matched pairs at the labelled pixels, both [K, P]."""
    size = target.labelled_HW.shape
    masks_KHW = F.interpolate(masks_Khw[None], size=size, mode="bilinear", align_corners=False)[0]
    truth_KHW = target.masks_THW[of.to(target.masks_THW.device)]
    return masks_KHW[:, target.labelled_HW], truth_KHW[:, target.labelled_HW]
