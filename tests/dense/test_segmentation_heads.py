"""UperNet, FCN and Semantic FPN: sizes, plain rewritings, who learns."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.dense.fcn import FcnHead
from capwright.dense.semantic_fpn import SemanticFpn
from capwright.dense.upernet import BINS, UperNet

CHANNELS, STRIDES = (6, 8, 10, 12), (4, 8, 16, 32)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def maps(height: int = 64, width: int = 96) -> list[Tensor]:
    return [
        torch.randn(2, depth, -(-height // stride), -(-width // stride))
        for depth, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


def heads() -> list[nn.Module]:
    return [
        UperNet(CHANNELS, 5, width=16),
        FcnHead(CHANNELS, 5, width=16),
        SemanticFpn(CHANNELS, STRIDES, 5, pyramid_width=16, width=16),
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("size", [(64, 96), (65, 91), (224, 224)])
def test_logits_have_the_size_asked_for(number: int, size: tuple[int, int]) -> None:
    assert heads()[number](maps(*size), size).shape == (2, 5, *size)


@pytest.mark.parametrize("number", range(3))
def test_every_parameter_learns(number: int) -> None:
    head = heads()[number]
    head(maps(), (64, 96)).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def normed(x: Tensor, layer: nn.Sequential) -> Tensor:
    """A convolution, a BatchNorm in evaluation and a ReLU, written out."""
    convolution, norm = layer[0], layer[1]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    x = F.conv2d(x, convolution.weight, convolution.bias, padding=convolution.padding)  # type: ignore[arg-type]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    centred = (x - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps)[
        :, None, None
    ].sqrt()
    return (centred * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def stirred(head: nn.Module) -> nn.Module:
    """In evaluation, in float64, with statistics that are not 0 and 1."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    return head.double().eval()


def test_upernet_equals_a_plain_rewriting() -> None:
    head = stirred(UperNet(CHANNELS, 5, width=8))
    assert isinstance(head, UperNet)
    given = [each.double() for each in maps()]
    found = head(given, (64, 96))

    coarse = given[-1]
    joined = [coarse]
    for bins, pool in zip(BINS, head.pooled, strict=True):
        cells = F.adaptive_avg_pool2d(coarse, bins)
        joined.append(enlarged(normed(cells, pool[1]), coarse.shape[-2:]))  # type: ignore[index]
    x = normed(torch.cat(joined, dim=1), head.top)
    outputs = {3: x}
    for level in (2, 1, 0):
        x = normed(given[level], head.lateral[level]) + enlarged(x, given[level].shape[-2:])  # type: ignore[arg-type]
        outputs[level] = normed(x, head.smooth[level])  # type: ignore[arg-type]
    finest = given[0].shape[-2:]
    every = torch.cat([enlarged(outputs[level], finest) for level in (3, 2, 1, 0)], dim=1)
    expected = enlarged(head.classify(normed(every, head.join)), (64, 96))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_semantic_fpn_equals_a_plain_rewriting() -> None:
    head = SemanticFpn(CHANNELS, STRIDES, 5, pyramid_width=16, width=8).double().eval()
    given = [each.double() for each in maps()]
    found = head(given, (64, 96))

    fpn = head.pyramid
    inner = [block(each) for block, each in zip(fpn.inner_blocks, given, strict=True)]
    carried = [inner[-1]]
    for level in (2, 1, 0):
        up = F.interpolate(carried[0], size=inner[level].shape[-2:], mode="nearest")
        carried.insert(0, inner[level] + up)
    levels = [block(each) for block, each in zip(fpn.layer_blocks, carried, strict=True)]
    total = torch.zeros(1, dtype=torch.float64)
    for number, x in enumerate(levels):
        steps = [m for m in head.levels[number] if not isinstance(m, nn.Upsample)]  # type: ignore[union-attr]
        assert len(steps) == max(1, number)  # log2 of stride over the finest, at least once
        for step in steps:
            convolution, norm = step[0], step[1]
            x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
            x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps).clamp(min=0)
            if number:
                x = enlarged(x, [2 * side for side in x.shape[-2:]])
        total = total + enlarged(x, given[0].shape[-2:])
    expected = enlarged(head.predict(total), (64, 96))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_fcn_reads_its_level_alone() -> None:
    head = FcnHead(CHANNELS, 5, level=1, width=8).eval()
    given = maps()
    found = head(given, (64, 96))
    others = [each if number == 1 else torch.zeros_like(each) for number, each in enumerate(given)]
    torch.testing.assert_close(head(others, (64, 96)), found)
    given[1] = torch.zeros_like(given[1])
    assert not np.allclose(head(given, (64, 96)).detach(), found.detach())
    assert FcnHead((6, 8), 5, level=2).level == 1  # fewer levels than asked for: the last


@pytest.mark.parametrize(("width", "groups"), [(128, 32), (64, 16), (16, 4), (12, 2), (3, 1)])
def test_groups_fit_any_width(width: int, groups: int) -> None:
    head = SemanticFpn(CHANNELS, STRIDES, 3, pyramid_width=8, width=width)
    norms = [m for m in head.modules() if isinstance(m, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {groups}


def test_a_coarsest_map_of_one_cell_has_a_norm() -> None:
    head = SemanticFpn(CHANNELS, STRIDES, 3, pyramid_width=8, width=16).eval()
    given = [each[:1] for each in maps(32, 32)]
    assert head(given, (32, 32)).shape == (1, 3, 32, 32)
