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
    """What is labelled in a picture, at the labels' size and at the masks'."""

    classes_T: Tensor
    masks_THW: Tensor  # float, 0 or 1
    labelled_HW: Tensor  # float, 0 or 1
    small_TP: Tensor
    small_labelled_P: Tensor


def targets_of(seg_HW: Tensor, size: Sequence[int]) -> Targets:
    """The classes of a picture with their masks; `size` is (h, w) of the proposals' masks."""
    labelled_HW = seg_HW != IGNORE
    classes_T = torch.unique(seg_HW[labelled_HW]).long()
    masks_THW = (seg_HW[None] == classes_T[:, None, None]).float()
    both = torch.cat([masks_THW, labelled_HW[None].float()])
    small = F.interpolate(both[None], size=tuple(size), mode="nearest")[0].flatten(1)
    return Targets(
        classes_T=classes_T,
        masks_THW=masks_THW,
        labelled_HW=labelled_HW.float(),
        small_TP=small[:-1],
        small_labelled_P=small[-1],
    )


def proposal_loss(
    logits_BQN: Tensor, masks_BQhw: Tensor, targets: Sequence[Targets], weights: LossWeights
) -> Tensor:
    """Loss of one layer's proposals, a scalar; `masks_BQhw` are logits.

    Costs are taken at the masks' own size, on labels of the nearest pixel; losses at the labels'.
    """
    matched = match(logits_BQN, masks_BQhw, targets, weights)
    wanted_BQ = logits_BQN.new_full(logits_BQN.shape[:2], logits_BQN.shape[-1] - 1).long()
    for picture, (chosen, of) in enumerate(matched):
        wanted_BQ[picture, chosen] = targets[picture].classes_T[of]
        if not len(targets[picture].classes_T):
            wanted_BQ[picture] = LEFT_OUT
    total = weights.classes * class_loss(logits_BQN, wanted_BQ, weights.no_object)
    number = sum(len(target.classes_T) for target in targets)
    if number:
        pairs = _pairs_at_size_of_labels(masks_BQhw, targets, matched)
        focal, dice = focal_loss(*pairs).sum(), dice_loss(*pairs).sum()
        total = total + (weights.focal * focal + weights.dice * dice) / number
    return total


@torch.no_grad()
def match(
    logits_BQN: Tensor, masks_BQhw: Tensor, targets: Sequence[Targets], weights: LossWeights
) -> list[tuple[Tensor, Tensor]]:
    """(proposals, targets) of each picture that are matched, by the least sum of costs."""
    probability_BQN, device = logits_BQN.softmax(dim=-1), logits_BQN.device
    masks_BQP = masks_BQhw.flatten(2)
    ones = torch.ones_like(masks_BQP)
    inside_BQP = sigmoid_focal_loss(masks_BQP, ones, alpha=ALPHA, gamma=GAMMA)
    outside_BQP = sigmoid_focal_loss(masks_BQP, ones - 1, alpha=ALPHA, gamma=GAMMA)
    found = []
    for picture, target in enumerate(targets):
        focal = (inside_BQP[picture], outside_BQP[picture])
        costs_QT = pair_costs(
            probability_BQN[picture], masks_BQP[picture].sigmoid(), focal, target, weights
        )
        pairs = linear_sum_assignment(costs_QT.cpu().numpy())
        found.append(tuple(torch.as_tensor(numbers, device=device) for numbers in pairs))
    return found  # type: ignore[return-value]


def pair_costs(
    probability_QN: Tensor,
    inside_QP: Tensor,
    focal: tuple[Tensor, Tensor],
    target: Targets,
    weights: LossWeights,
) -> Tensor:
    """What each pair would cost, [Q, T]; a number that is not finite is the largest there is.

    `focal` is each pixel's focal loss [Q, P] were it inside of the target, and were it outside.
    """
    truth_TP, labelled_P = target.small_TP, target.small_labelled_P
    focal_QT = focal[0] @ truth_TP.T + focal[1] @ (labelled_P - truth_TP).T
    size_QT = (inside_QP @ labelled_P)[:, None] + truth_TP.sum(dim=1)
    dice_QT = 1 - (2 * inside_QP @ truth_TP.T + 1) / (size_QT + 1)
    costs_QT = (
        weights.focal * focal_QT / labelled_P.sum().clamp(min=1)
        + weights.dice * dice_QT
        - weights.classes * probability_QN[:, target.classes_T]
    )
    most = torch.finfo(costs_QT.dtype).max
    return torch.nan_to_num(costs_QT, nan=most, posinf=most, neginf=most)


def class_loss(logits_BQN: Tensor, wanted_BQ: Tensor, no_object: float) -> Tensor:
    """Cross-entropy, a mean in which the last column's rows count `no_object` each."""
    if bool((wanted_BQ == LEFT_OUT).all()):
        return logits_BQN.sum() * 0.0
    weight_N = logits_BQN.new_ones(logits_BQN.shape[-1])
    weight_N[-1] = no_object
    rows = (logits_BQN.flatten(0, 1), wanted_BQ.flatten())
    return F.cross_entropy(*rows, weight_N, ignore_index=LEFT_OUT)


def focal_loss(masks_KP: Tensor, truth_KP: Tensor, labelled_KP: Tensor) -> Tensor:
    """One number a pair, [K]: the mean over labelled pixels."""
    loss_KP: Tensor = sigmoid_focal_loss(masks_KP, truth_KP, alpha=ALPHA, gamma=GAMMA)
    return (loss_KP * labelled_KP).sum(dim=1) / labelled_KP.sum(dim=1)


def dice_loss(masks_KP: Tensor, truth_KP: Tensor, labelled_KP: Tensor) -> Tensor:
    """One number a pair, [K], over labelled pixels."""
    inside_KP = masks_KP.sigmoid() * labelled_KP
    both_K = 2 * (inside_KP * truth_KP).sum(dim=1)
    return 1 - (both_K + 1) / (inside_KP.sum(dim=1) + truth_KP.sum(dim=1) + 1)


def _pairs_at_size_of_labels(
    masks_BQhw: Tensor, targets: Sequence[Targets], matched: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, truth and what is labelled of all matched pairs of the batch, each [K, P]."""
    masks_Khw = torch.cat([masks_BQhw[b, chosen] for b, (chosen, _) in enumerate(matched)])
    truth_KHW = torch.cat([t.masks_THW[of] for t, (_, of) in zip(targets, matched, strict=True)])
    labelled_KHW = torch.cat(
        [t.labelled_HW.expand(len(of), -1, -1) for t, (_, of) in zip(targets, matched, strict=True)]
    )
    size = truth_KHW.shape[-2:]
    masks_KHW = F.interpolate(masks_Khw[None], size=size, mode="bilinear", align_corners=False)[0]
    return masks_KHW.flatten(1), truth_KHW.flatten(1), labelled_KHW.flatten(1)
