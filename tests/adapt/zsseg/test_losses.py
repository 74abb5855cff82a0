"""Matching and losses: transformers' own where all pixels are labelled, plain float64 elsewhere."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.maskformer.modeling_maskformer import (
    MaskFormerHungarianMatcher,
    MaskFormerLoss,
)

from capwright.adapt.zsseg.losses import LossWeights, match, proposal_loss, targets_of

B, Q, C, SMALL, LARGE = 3, 5, 4, 6, 13
WEIGHTS = LossWeights()


def batch(seed: int = 0, *, hide: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, Q, C + 1, generator=draws)
    masks = 2 * torch.randn(B, Q, SMALL, SMALL, generator=draws)
    seg = torch.randint(0, C, (B, LARGE, LARGE), generator=draws).to(torch.uint8)
    if hide:
        seg[torch.rand(seg.shape, generator=draws) < 0.4] = 255
    return logits, masks, seg


def test_with_every_pixel_labelled_it_is_transformers_loss() -> None:
    logits, masks, seg = batch()
    seg[0] = 2  # one target
    targets = [targets_of(each, (SMALL, SMALL)) for each in seg]
    matcher = MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    theirs = MaskFormerLoss(C, matcher=matcher, weight_dict={}, eos_coef=0.1)
    labels = [target.masks_THW for target in targets], [target.classes_T for target in targets]
    terms = theirs(masks, logits, *labels)
    expected = terms["loss_cross_entropy"] + 20 * terms["loss_mask"] + terms["loss_dice"]
    torch.testing.assert_close(proposal_loss(logits, masks, targets, WEIGHTS), expected)


def test_hidden_pixels_against_a_plain_rewriting() -> None:
    logits, masks, seg = batch(1, hide=True)
    logits, masks = logits.double(), masks.double()
    targets = [targets_of(each, (SMALL, SMALL)) for each in seg]
    targets = [
        type(t)(**{k: v.double() if v.is_floating_point() else v for k, v in vars(t).items()})
        for t in targets
    ]
    found = proposal_loss(logits, masks, targets, WEIGHTS)
    assert float(found) == pytest.approx(plain_loss(logits, masks, seg), abs=1e-9)


def plain_loss(logits: Tensor, masks: Tensor, seg: Tensor) -> float:
    """Every pair, every pixel, every order of matching, one at a time."""
    focal_sum = dice_sum = rows = total = 0.0
    number = sum(len(set(each.flatten().tolist()) - {255}) for each in seg)
    for b in range(B):
        labels = np.asarray(seg[b])
        classes = sorted(set(labels.flatten().tolist()) - {255})
        nearest = [int(i * LARGE / SMALL) for i in range(SMALL)]
        small = labels[np.ix_(nearest, nearest)]
        costs = {}
        for q, c in itertools.product(range(Q), classes):
            pairs = [
                (float(masks[b, q, y, x]), float(small[y, x] == c))
                for y in range(SMALL)
                for x in range(SMALL)
                if small[y, x] != 255
            ]
            p = float(torch.softmax(logits[b, q], dim=0)[c])
            costs[q, c] = -p + 20 * plain_focal(pairs) + plain_dice(pairs)
        best = min(
            itertools.permutations(range(Q), len(classes)),
            key=lambda chosen: sum(costs[q, c] for q, c in zip(chosen, classes, strict=True)),
        )
        wanted = dict.fromkeys(range(Q), C) | dict(zip(best, classes, strict=True))
        for q, c in wanted.items():
            weight = 0.1 if c == C else 1.0
            total -= weight * float(torch.log_softmax(logits[b, q], dim=0)[c])
            rows += weight
        for q, c in zip(best, classes, strict=True):
            pairs = [
                (plain_bilinear(masks[b, q], y, x), float(labels[y, x] == c))
                for y in range(LARGE)
                for x in range(LARGE)
                if labels[y, x] != 255
            ]
            focal_sum += plain_focal(pairs)
            dice_sum += plain_dice(pairs)
    return total / rows + (20 * focal_sum + dice_sum) / number


def plain_focal(pairs: list[tuple[float, float]]) -> float:
    total = 0.0
    for logit, truth in pairs:
        inside = 1 / (1 + math.exp(-logit))
        right = inside if truth else 1 - inside
        total -= (0.25 if truth else 0.75) * (1 - right) ** 2 * math.log(right)
    return total / len(pairs)


def plain_dice(pairs: list[tuple[float, float]]) -> float:
    insides = [(1 / (1 + math.exp(-logit)), truth) for logit, truth in pairs]
    both = sum(i * t for i, t in insides)
    return 1 - (2 * both + 1) / (sum(i for i, _ in insides) + sum(t for _, t in insides) + 1)


def plain_bilinear(mask: Tensor, y: int, x: int) -> float:
    at = [max(0.0, (place + 0.5) * SMALL / LARGE - 0.5) for place in (y, x)]
    low = [min(int(place), SMALL - 1) for place in at]
    high = [min(place + 1, SMALL - 1) for place in low]
    part = [place - start for place, start in zip(at, low, strict=True)]
    return sum(
        (part[0] if i else 1 - part[0]) * (part[1] if j else 1 - part[1])
        * float(mask[(low[0], high[0])[i], (low[1], high[1])[j]])
        for i in (0, 1)
        for j in (0, 1)
    )  # fmt: skip


def test_masks_learn_nothing_where_nothing_is_labelled() -> None:
    logits, _, seg = batch(2)
    seg[:, :, :5] = 255
    masks = torch.randn(B, Q, LARGE, LARGE, requires_grad=True)
    targets = [targets_of(each, (LARGE, LARGE)) for each in seg]
    proposal_loss(logits, masks, targets, WEIGHTS).backward()
    assert masks.grad is not None
    assert not masks.grad[..., :5].any() and masks.grad[..., 5:].any()
    changed = masks.detach().clone()
    changed[..., :5] = 100 * torch.randn(B, Q, LARGE, 5)
    values = [proposal_loss(logits, each, targets, WEIGHTS) for each in (masks.detach(), changed)]
    torch.testing.assert_close(*values, rtol=0, atol=0)


def test_a_picture_without_a_label_teaches_nothing() -> None:
    logits, masks, seg = batch(3)
    seg[1] = 255
    kept = [0, 2]
    whole = proposal_loss(
        logits, masks, [targets_of(each, (SMALL, SMALL)) for each in seg], WEIGHTS
    )
    others = proposal_loss(
        logits[kept], masks[kept], [targets_of(seg[i], (SMALL, SMALL)) for i in kept], WEIGHTS
    )
    torch.testing.assert_close(whole, others)


def test_no_label_at_all_is_a_zero_with_a_gradient() -> None:
    logits, masks, seg = batch(4)
    seg[:] = 255
    logits.requires_grad_()
    loss = proposal_loss(logits, masks, [targets_of(each, (SMALL, SMALL)) for each in seg], WEIGHTS)
    loss.backward()
    assert float(loss.detach()) == 0.0 and logits.grad is not None and not logits.grad.any()


def test_more_targets_than_proposals() -> None:
    logits, masks, seg = batch(5)
    loss = proposal_loss(
        logits[:, :2], masks[:, :2], [targets_of(s, (SMALL, SMALL)) for s in seg], WEIGHTS
    )
    assert loss.isfinite()


def test_costs_that_are_not_finite_do_not_stop_the_matching() -> None:
    logits, masks, seg = batch(6)
    masks[0, 0, 0, 0] = math.inf
    found = match(logits, masks, [targets_of(s, (SMALL, SMALL)) for s in seg], WEIGHTS)
    assert [len(chosen) for chosen, _ in found] == [C] * B
    assert 0 not in found[0][0].tolist()
