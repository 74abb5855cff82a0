"""Depth decoders: sizes and strides, the fusion equation, what a gradient reaches."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from capwright.dense.backbone import load_backbone
from capwright.dense.depth_head import DeconvDepth, GlpDepth, SelectiveFusion
from capwright.dense.pixel_model import PixelModel
from capwright.dense.pyramid import build_pyramid

MOST_M = 10.0
HEADS = (GlpDepth, DeconvDepth)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def maps_of(channels: tuple[int, ...], sides: tuple[tuple[int, int], ...]) -> list[torch.Tensor]:
    return [torch.randn(2, c, *side) for c, side in zip(channels, sides, strict=True)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("sides", "size"),
    [
        (((16, 24), (8, 12), (4, 6), (2, 3)), (64, 96)),  # strides 4 to 32
        (((4, 6), (4, 6), (4, 6), (4, 6)), (64, 96)),  # a plain encoder of stride 16
        (((5, 3), (5, 3), (5, 3), (5, 3)), (70, 42)),  # stride 14
        (((17, 21), (9, 11), (5, 6), (3, 3)), (67, 83)),  # odd sizes
    ],
)
def test_answers_are_distances_at_the_size_asked_for(
    head: type, sides: tuple[tuple[int, int], ...], size: tuple[int, int]
) -> None:
    channels = (6, 8, 10, 12)
    metres = head(channels, most_m=MOST_M, width=8)(maps_of(channels, sides), size)
    assert metres.shape == (2, 1, *size)
    assert metres.min() > 0
    assert metres.max() < MOST_M
    assert metres.std() > 0


@pytest.mark.parametrize("head", HEADS)
def test_one_map_of_a_plain_encoder_is_enough(head: type) -> None:
    metres = head((12,), most_m=MOST_M, width=8)([torch.randn(1, 12, 3, 5)], (48, 80))
    assert metres.shape == (1, 1, 48, 80)


def test_every_map_has_a_say_in_glp_and_only_the_coarsest_in_deconv() -> None:
    sides = ((16, 16), (8, 8), (4, 4), (2, 2))
    reached = {}
    for head in HEADS:
        maps = [each.requires_grad_() for each in maps_of((4, 4, 4, 4), sides)]
        head((4, 4, 4, 4), most_m=MOST_M, width=8)(maps, (32, 32)).sum().backward()
        reached[head] = [each.grad is not None and bool(each.grad.abs().sum() > 0) for each in maps]
    assert reached[GlpDepth] == [True] * 4
    assert reached[DeconvDepth] == [False, False, False, True]


def test_fusion_is_the_sum_weighted_by_two_maps_between_0_and_1() -> None:
    fuse = SelectiveFusion(4).double().eval()
    own, above = (torch.randn(1, 4, 3, 5, dtype=torch.float64) for _ in range(2))
    weights: list[torch.Tensor] = []
    fuse.weigh.register_forward_hook(lambda module, given, out: weights.append(out))
    fused = fuse(own, above).detach().numpy()
    first, second = weights[0].detach().numpy()[0]
    assert 0 < first.min() < first.max() < 1
    expected = own[0].numpy() * first + above[0].numpy() * second
    np.testing.assert_allclose(fused[0], expected, rtol=1e-12)
    assert not np.allclose(first, second)


def test_fusion_with_its_weights_by_hand() -> None:
    """With the last convolution at 0 both weights are sigmoid of its biases, everywhere."""
    fuse = SelectiveFusion(4).eval()
    last = fuse.weigh[2]
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([0.0, math.log(3.0)])  # type: ignore[union-attr]
    own, above = torch.randn(1, 4, 3, 5), torch.randn(1, 4, 3, 5)
    torch.testing.assert_close(fuse(own, above), 0.5 * own + 0.75 * above)


@pytest.mark.parametrize("size", [(50, 70), (64, 64)])
def test_glp_on_the_pyramid_of_a_plain_and_of_a_hierarchical_encoder(size: tuple[int, int]) -> None:
    for model in ("nano", "nano-mci"):
        backbone = load_backbone(None, model=model, depths="spread")
        pyramid = build_pyramid(backbone, width=16)
        head = GlpDepth(pyramid.channels, most_m=MOST_M, width=8)
        metres = PixelModel(backbone, pyramid, head).eval()(torch.randn(1, 3, *size))
        assert metres.shape == (1, 1, *size), model
