"""Both opinions and their mean against a plain rewriting in float64."""

import math

import numpy as np
import pytest
import torch

from capwright.adapt.zsseg.crops import Regions
from capwright.adapt.zsseg.ensemble import (
    class_map,
    clip_probability,
    ensemble,
    exponents,
    proposal_probability,
)
from capwright.core.errors import CapwrightError

Q, C, E, H, W = 4, 3, 6, 5, 7
SEEN = torch.tensor([True, False, True])


def softmax(row: np.ndarray) -> list[float]:
    shifted = [math.exp(float(value) - float(max(row))) for value in row]
    return [value / sum(shifted) for value in shifted]


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.8, 1.0])
def test_every_step_against_plain_sums(weight: float) -> None:
    torch.manual_seed(0)
    logits_QN = 3 * torch.randn(Q, C + 1)
    features_QE = torch.nn.functional.normalize(torch.randn(Q, E), dim=-1)
    texts_CE = torch.nn.functional.normalize(torch.randn(C, E), dim=-1)
    filled_Q = torch.tensor([True, True, False, True])
    masks_QHW = torch.rand(Q, H, W)

    regions = Regions(features_QE=features_QE * filled_Q[:, None], filled_Q=filled_Q)
    p_QC = ensemble(
        proposal_probability(logits_QN),
        clip_probability(regions, texts_CE, 20.0),
        exponents(SEEN, weight),
    )
    found = class_map(p_QC, masks_QHW)

    expected = np.zeros((C, H, W))
    for q in range(Q):
        p_m = softmax(logits_QN[q].double().numpy())
        cosines = [float(features_QE[q].double() @ t.double()) for t in texts_CE]
        p_c = softmax(np.array([20.0 * cosine for cosine in cosines]))
        for c in range(C):
            power = weight if SEEN[c] else 1 - weight
            joined = p_m[c] ** power * (p_c[c] if filled_Q[q] else 1.0) ** (1 - power)
            expected[c] += joined * masks_QHW[q].double().numpy()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_ends_are_one_opinion_alone() -> None:
    p_m, p_c = torch.rand(Q, C), torch.rand(Q, C)
    both = ensemble(p_m, p_c, exponents(SEEN, 1.0))
    torch.testing.assert_close(both[:, SEEN], p_m[:, SEEN])
    torch.testing.assert_close(both[:, ~SEEN], p_c[:, ~SEEN])


def test_all_masks_empty() -> None:
    regions = Regions(features_QE=torch.zeros(Q, 0), filled_Q=torch.zeros(Q, dtype=torch.bool))
    p_c = clip_probability(regions, torch.randn(C, E), 100.0)
    assert p_c.tolist() == torch.ones(Q, C).tolist()
    p_m = proposal_probability(torch.randn(Q, C + 1))
    scores = class_map(ensemble(p_m, p_c, exponents(SEEN, 0.8)), torch.rand(Q, H, W) * 0.4)
    assert scores.isfinite().all() and (scores > 0).all()


def test_no_proposals() -> None:
    regions = Regions(features_QE=torch.zeros(0, E), filled_Q=torch.zeros(0, dtype=torch.bool))
    p_c = clip_probability(regions, torch.randn(C, E), 100.0)
    p_QC = ensemble(proposal_probability(torch.zeros(0, C + 1)), p_c, exponents(SEEN, 0.8))
    assert class_map(p_QC, torch.zeros(0, H, W)).tolist() == torch.zeros(C, H, W).tolist()


def test_opinions_that_are_certain_stay_finite() -> None:
    p_m = proposal_probability(torch.tensor([[500.0, -500.0, 0.0, 0.0]]))
    joined = ensemble(p_m, torch.tensor([[0.0, 1.0, 0.0]]), exponents(SEEN, 1.0))
    assert joined.isfinite().all()


def test_a_weight_outside_its_range() -> None:
    with pytest.raises(CapwrightError, match=r"ensemble weight is 1.5: allowed are 0 to 1"):
        exponents(SEEN, 1.5)
