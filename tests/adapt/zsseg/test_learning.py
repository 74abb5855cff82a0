"""The proposals learn: squares of two colours on grey, each with its class."""

import numpy as np
import pytest
import torch

import toy_scenes
from capwright.adapt.zsseg.ensemble import class_map, proposal_probability
from capwright.adapt.zsseg.learners import ProposalLearner
from capwright.adapt.zsseg.losses import LossWeights
from capwright.adapt.zsseg.proposals import ProposalNetwork, ProposalSettings, enlarged


def pictures() -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for number in range(4):
        pixels, seg, _ = toy_scenes.toy(number)
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        found.append((image, torch.from_numpy(seg)))
    return found


@pytest.mark.slow
def test_masks_and_classes_are_learned(settings: ProposalSettings) -> None:
    torch.manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(3, 16), dim=-1)
    network = ProposalNetwork(settings, 16).train()
    learner = ProposalLearner(network, texts, LossWeights())
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    shown = pictures()
    for _ in range(120):
        optimizer.zero_grad()
        learner.loss(shown, np.random.default_rng(0)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    right = []
    for image, seg in shown:
        with torch.no_grad():
            last = network(image[None])[-1]
            probability = proposal_probability(network.logits(last.embeddings_BQE, texts)[0])
        masks = enlarged(last.masks_BQhw, (64, 64), 32)[0].sigmoid()
        answer = class_map(probability, masks).argmax(dim=0)
        right.append(float((answer == seg).float().mean()))
    assert np.mean(right) > 0.9, right  # all background is 0.75
