"""Pyramids: strides and sizes for any patch, and what the simple one is made of."""

import pytest
import torch
from torch import nn

from capwright.dense.backbone import load_backbone
from capwright.dense.pyramid import SimpleFeaturePyramid, build_pyramid


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("stride", "sizes", "strides"),
    [
        (16, [(24, 40), (12, 20), (6, 10), (3, 5)], (4, 8, 16, 32)),
        (14, [(24, 40), (12, 20), (6, 10), (3, 5)], (4, 7, 14, 28)),
        (32, [(48, 80), (24, 40), (12, 20), (6, 10)], (4, 8, 16, 32)),
        (8, [(12, 20), (6, 10), (3, 5), (1, 2)], (4, 8, 16, 32)),
    ],
)
def test_four_maps_of_one(
    stride: int, sizes: list[tuple[int, int]], strides: tuple[int, ...]
) -> None:
    pyramid = SimpleFeaturePyramid((12,), stride, width=6)
    maps = pyramid([torch.randn(2, 12, 6, 10)])
    assert [tuple(each.shape) for each in maps] == [(2, 6, *size) for size in sizes]
    assert (pyramid.strides, pyramid.channels) == (strides, (6,) * 4)
    assert pyramid.multiple % stride == 0


def test_every_level_learns_and_is_normed() -> None:
    pyramid = SimpleFeaturePyramid((12,), 16, width=6)
    maps = pyramid([torch.randn(1, 12, 4, 4)])
    sum(each.square().sum() for each in maps).backward()  # type: ignore[union-attr]
    grads = {name: p.grad for name, p in pyramid.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    for each in maps:  # a LayerNorm over channels ends each level
        torch.testing.assert_close(
            each.mean(dim=1), torch.zeros_like(each[:, 0]), atol=1e-5, rtol=0
        )


def test_the_coarsest_map_is_max_pooled_before_its_convolutions() -> None:
    pyramid = SimpleFeaturePyramid((12,), 16, width=6)
    layers = pyramid.levels[3]
    assert isinstance(layers, nn.Sequential)
    assert isinstance(layers[0], nn.MaxPool2d)
    assert isinstance(pyramid.levels[2][0], nn.Conv2d)  # type: ignore[index]
    ups = [m for m in pyramid.levels[0].modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(up.in_channels, up.out_channels, up.stride) for up in ups] == [
        (12, 6, (2, 2)), (6, 3, (2, 2)),
    ]  # fmt: skip


def test_with_four_maps_each_level_has_its_own() -> None:
    pyramid = SimpleFeaturePyramid((12,) * 4, 16, width=6).eval()
    first = [torch.randn(1, 12, 4, 4) for _ in range(4)]
    other = [torch.randn(1, 12, 4, 4), *first[1:]]
    same = [torch.equal(a, b) for a, b in zip(pyramid(first), pyramid(other), strict=True)]
    assert same == [False, True, True, True]


def test_the_pyramid_suits_the_encoder() -> None:
    plain = build_pyramid(load_backbone(None, model="nano"), width=8)
    assert isinstance(plain, SimpleFeaturePyramid)
    hierarchical = load_backbone(None, model="timm:resnet18")
    stages = build_pyramid(hierarchical)
    assert stages.channels == hierarchical.channels == (64, 128, 256, 512)
    maps = hierarchical(torch.randn(1, 3, 64, 64))
    assert all(a is b for a, b in zip(stages(maps), maps, strict=True))
