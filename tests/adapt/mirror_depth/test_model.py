"""Modulation, decoder and arms: equations, sizes, parameters, what learns and what stays."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from capwright.adapt.mirror_depth import Config
from capwright.adapt.mirror_depth.config import CONSTANT, DECODER, MIRROR, PROMPTS
from capwright.adapt.mirror_depth.model import (
    CompactDecoder,
    build,
    frozen_backbone,
    modulated,
    trained_parameters,
)
from capwright.core.errors import CapwrightError
from capwright.dense.losses import silog_loss
from capwright.evaluate.encoder import Encoder, load_encoder

TRAINED = (MIRROR, CONSTANT, PROMPTS, DECODER)


def test_modulation_against_loops() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 4, 5), torch.randn(2, 2, 2, 3)]
    film = [(torch.randn(3), torch.randn(3)), (torch.randn(2), torch.randn(2))]
    for found, each, (gamma, beta) in zip(modulated(maps, film), maps, film, strict=True):
        expected = np.empty(each.shape)
        for place in np.ndindex(*each.shape):
            expected[place] = float(gamma[place[1]]) * float(each[place]) + float(beta[place[1]])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_decoder_sums_the_depths_at_the_finest_grid() -> None:
    torch.manual_seed(0)
    decoder = CompactDecoder((3, 5), (8, 16), most_m=10.0, width=4).eval()
    fine, coarse = torch.randn(1, 3, 4, 6), torch.randn(1, 5, 2, 3)
    enlarged = torch.nn.functional.interpolate(
        decoder.reduce[1](coarse), size=(4, 6), mode="bilinear", align_corners=False
    )
    expected = decoder.enlarge([decoder.reduce[0](fine) + enlarged], (30, 50))
    found = decoder([fine, coarse], (30, 50))
    torch.testing.assert_close(found, expected)
    assert found.shape == (1, 1, 30, 50) and (found > 0).all() and (found < 10).all()


@pytest.mark.parametrize("stride, doublings", [(32, 3), (14, 3), (4, 2), (1, 0)])
def test_a_grid_is_doubled_no_further_than_to_pixels(stride: int, doublings: int) -> None:
    decoder = CompactDecoder((3,), (stride,), most_m=1.0, width=4)
    convolutions = [m for m in decoder.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert len(convolutions) == doublings


def test_a_decoder_begins_at_the_usual_depth(encoder: Encoder, plan: Config) -> None:
    usual = build(encoder, plan, MIRROR, most_m=20.0, seed=0, usual_m=0.3)
    with torch.no_grad():
        metres = usual(torch.randn(4, 3, 32, 32))
    assert float(metres.log().mean().exp()) == pytest.approx(0.3, rel=0.2)


@pytest.mark.parametrize("arm", TRAINED)
@pytest.mark.parametrize("height, width", [(32, 32), (37, 50), (5, 3), (1, 70)])
def test_pictures_of_any_size(
    encoder: Encoder, plan: Config, arm: str, height: int, width: int
) -> None:
    """Also smaller than a patch of 8 pixels, and not a multiple of it."""
    model = build(encoder, plan, arm, most_m=20.0, seed=0).eval()
    with torch.no_grad():
        metres = model(torch.randn(2, 3, height, width))
    assert metres.shape == (2, 1, height, width)
    assert metres.isfinite().all() and (metres > 0).all() and (metres < 20).all()


@pytest.mark.parametrize("arm", TRAINED)
def test_what_learns_and_what_stays_as_it_is(encoder: Encoder, plan: Config, arm: str) -> None:
    before = copy.deepcopy(encoder.model.state_dict())
    model = build(encoder, plan, arm, most_m=20.0, seed=0).train()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        metres = model(torch.randn(2, 3, 32, 32))
        silog_loss(metres[:, 0].log(), torch.rand(2, 32, 32) + 1).backward()
        optimizer.step()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned and all(name.startswith("head.") for name in learned)
    for name, parameter in model.named_parameters():
        if name.startswith("head."):
            assert parameter.grad is not None, name
    condition = {name.split(".")[2] for name in learned if name.startswith("head.condition.")}
    wanted = {MIRROR: {"texts", "film"}, PROMPTS: {"film"}, CONSTANT: {"gammas", "betas"}}
    assert condition == wanted.get(arm, set())
    after = encoder.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.grad is not None for p in encoder.model.parameters())


def test_trained_parameters_by_hand(encoder: Encoder, plan: Config) -> None:
    backbone = frozen_backbone(encoder)
    depths, embedding = sum(backbone.channels), 16
    counts = {
        arm: trained_parameters(build(encoder, plan, arm, most_m=20.0, seed=0)) for arm in TRAINED
    }
    width, doublings = plan.width, 3
    decoder = depths * width + len(backbone.channels) * width  # 1x1 convolutions
    decoder += doublings * (4 * width * width + 2 * width)  # without bias, with norms
    decoder += 9 * width * width + 2 * width  # 3x3 with a norm
    decoder += 9 * width * width + width + 9 * width + 1  # the last two
    assert counts[CONSTANT] == decoder + 2 * depths
    assert counts[PROMPTS] == decoder + 2 * depths * (embedding + 1)
    assert counts[MIRROR] == counts[PROMPTS] + plan.tokens * 8
    assert counts[DECODER] == pytest.approx(counts[MIRROR], rel=0.05)


def test_no_other_hidden_layer_is_nearer(encoder: Encoder, plan: Config) -> None:
    target = trained_parameters(build(encoder, plan, MIRROR, most_m=20.0, seed=0))
    model = build(encoder, plan, DECODER, most_m=20.0, seed=0)
    found = abs(trained_parameters(model) - target)
    hidden = model.head.decoder.reduce[0][0].out_channels
    backbone = frozen_backbone(encoder)
    for other in (hidden - 1, hidden + 1):
        near = CompactDecoder(
            backbone.channels, backbone.strides, most_m=1.0, width=plan.width, hidden=other
        )
        assert abs(trained_parameters(near) - target) >= found


def test_film_by_the_mirror_is_a_constant(encoder: Encoder, plan: Config) -> None:
    """The control of the sheet: gamma and beta read off the mirror give the same metres."""
    mirror = build(encoder, plan, MIRROR, most_m=20.0, seed=0).eval()
    constant = build(encoder, plan, CONSTANT, most_m=20.0, seed=1).eval()
    constant.head.decoder.load_state_dict(mirror.head.decoder.state_dict())
    condition = constant.head.condition
    with torch.no_grad():
        for number, (gamma, beta) in enumerate(mirror.head.condition()):
            condition.gammas[number].copy_(gamma)
            condition.betas[number].copy_(beta)
        images = torch.randn(2, 3, 40, 32)
        torch.testing.assert_close(constant(images), mirror(images), atol=1e-6, rtol=1e-6)


def test_arms_of_a_seed_begin_with_the_same_decoder(encoder: Encoder, plan: Config) -> None:
    states = [
        build(encoder, plan, arm, most_m=20.0, seed=3).head.decoder.state_dict()
        for arm in (MIRROR, CONSTANT, PROMPTS)
    ]
    other = build(encoder, plan, MIRROR, most_m=20.0, seed=4).head.decoder.state_dict()
    weight = "reduce.0.weight"
    assert all(torch.equal(state[weight], states[0][weight]) for state in states)
    assert not torch.equal(other[weight], states[0][weight])


def test_a_hierarchical_tower(plan: Config, clip_config: dict[str, Any]) -> None:
    """Maps of several strides: a small ConvNeXt-like tower of this project."""
    vision = {**clip_config["vision_cfg"], "timm_model_name": "capwright_mci_nano_s8"}
    encoder = load_encoder(None, model={**clip_config, "vision_cfg": vision}, seed=0)
    encoder.model.requires_grad_(False)
    model = build(encoder, plan, MIRROR, most_m=20.0, seed=0).eval()
    assert len(set(model.backbone.strides)) > 1
    with torch.no_grad():
        assert model(torch.randn(1, 3, 45, 32)).shape == (1, 1, 45, 32)


def test_refused_plans(plan: Config) -> None:
    with pytest.raises(CapwrightError, match="arms mirror, mirrors and 1 seeds"):
        replace(plan, arms=(MIRROR, "mirrors"))
    with pytest.raises(CapwrightError, match="tokens=0, width=8, 7 prompts"):
        replace(plan, tokens=0)
    with pytest.raises(CapwrightError, match="both towers stay frozen"):
        replace(plan, schedule=replace(plan.schedule, encoder_learning_rate=1e-5))
