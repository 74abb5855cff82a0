"""Encoders as backbones: maps at any size, what is frozen, what learns, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from capwright.core.errors import CapwrightError
from capwright.dense.backbone import RANDOM, load_backbone, set_drop_path, spread
from capwright.models import towers


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def vit(patch: int, layers: int = 4) -> dict[str, Any]:
    """open_clip's own vision transformer."""
    return {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 4 * patch, "patch_size": patch, "width": 24, "layers": layers,
            "head_width": 12,
        },
        "text_cfg": {"context_length": 8, "width": 8, "heads": 1, "layers": 1},
    }  # fmt: skip


TIMM_VIT = "timm:test_vit"  # patches of 16, 160 pixels
RESNET = "timm:resnet18"


@pytest.mark.parametrize("patch", [14, 16, 32])
def test_maps_of_a_vision_transformer_at_odd_sizes(patch: int) -> None:
    backbone = load_backbone(None, model=vit(patch))
    assert (backbone.plain, backbone.strides, backbone.channels) == (True, (patch,), (24,))
    for rows, columns in ((3, 5), (4, 4), (7, 2)):
        (found,) = backbone(torch.randn(2, 3, rows * patch, columns * patch))
        assert found.shape == (2, 24, rows, columns)


def test_four_depths_of_a_vision_transformer() -> None:
    assert spread(12) == (3, 5, 7, 11)
    assert spread(24) == (7, 11, 15, 23)
    assert spread(3) == (0, 1, 2)
    backbone = load_backbone(None, model=vit(16, layers=6), depths="spread")
    maps = backbone(torch.randn(1, 3, 48, 64))
    assert [tuple(each.shape) for each in maps] == [(1, 24, 3, 4)] * 4
    assert backbone.levels == (1, 2, 3, 5)
    assert not torch.equal(maps[0], maps[-1])


@pytest.mark.parametrize("model", [vit(16), "nano", TIMM_VIT])
def test_the_last_map_is_the_towers_own(model: Any) -> None:
    backbone = load_backbone(None, model=model)
    side = backbone.image_size
    images = torch.randn(1, 3, side, side)
    if model == TIMM_VIT:
        patches = backbone.visual.forward_features(images)[:, -100:]  # type: ignore[operator]
        expected = patches.transpose(1, 2).reshape(1, -1, 10, 10)
    else:
        expected = towers.dense_features(backbone.visual, images)
    torch.testing.assert_close(backbone(images)[-1], expected)


@pytest.mark.parametrize(("model", "strides"), [("nano-mci", None), (RESNET, (4, 8, 16, 32))])
def test_stages_of_a_hierarchical_encoder(model: str, strides: tuple[int, ...] | None) -> None:
    backbone = load_backbone(None, model=model)
    assert not backbone.plain
    assert strides in (None, backbone.strides[-4:])
    assert list(backbone.strides) == sorted(backbone.strides)
    step = backbone.multiple
    maps = backbone(torch.randn(1, 3, 3 * step, 2 * step))
    for found, depth, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert found.shape == (1, depth, 3 * step // stride, 2 * step // stride)


def test_pixels_are_normalised_as_the_encoder_wants_them() -> None:
    backbone = load_backbone(None, model="nano")
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (backbone.mean, backbone.std))
    expected = (pixels / 255 - mean) / std
    torch.testing.assert_close(backbone.normalised(pixels), expected)
    torch.testing.assert_close(backbone.normalised(pixels / 255), expected)


def test_a_frozen_backbone_gives_no_gradient_and_keeps_its_statistics() -> None:
    backbone = load_backbone(None, model="nano-mci")
    backbone.freeze()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    nn.ModuleList([backbone]).train()
    assert not any(module.training for module in backbone.modules())
    maps = backbone(torch.randn(2, 3, 64, 64) * 9)
    assert not any(each.requires_grad for each in maps)
    after = backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert backbone.parameter_groups(learning_rate=1, decay=1, weight_decay=0) == []


def test_a_learning_backbone_gives_a_gradient_to_its_stem() -> None:
    backbone = load_backbone(None, model=vit(16)).train()
    backbone(torch.randn(1, 3, 48, 80))[-1].square().sum().backward()
    visual: Any = backbone.visual
    assert visual.conv1.weight.grad.abs().sum() > 0
    assert visual.positional_embedding.grad.abs().sum() > 0  # through its interpolation


def test_still_norms_learn_without_new_statistics() -> None:
    backbone = load_backbone(None, model=RESNET)
    backbone.still_norms = True
    backbone.train()
    assert backbone.training
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)


def test_fresh_weights_are_a_function_of_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        return next(load_backbone(None, model="nano", seed=seed).parameters()).detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert load_backbone(None, model="nano").origin.pretrained == RANDOM


def test_a_timm_model_with_the_weights_of_a_file(tmp_path: Path) -> None:
    source = timm.create_model("resnet18", num_classes=0)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    name = f"{RESNET}@{tmp_path / 'weights.safetensors'}"
    backbone = load_backbone(name)
    assert backbone.origin.pretrained == name
    torch.testing.assert_close(backbone.visual.conv1.weight, source.conv1.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:no_such_model", "timm has no model 'no_such_model'"),
        ("timm:resnet18@nowhere.safetensors", "no weights at 'nowhere.safetensors'"),
        ("timm:resnet18@weights.bin", r"a \.safetensors file is expected"),
    ],
)
def test_unknown_models_and_files_are_refused(name: str, message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        load_backbone(name)


@pytest.mark.parametrize("model", [vit(16), "nano", "nano-mci"])
def test_drop_path_rises_through_the_blocks_and_rests_in_evaluation(model: Any) -> None:
    backbone = load_backbone(None, model=model)
    images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    before = backbone(images)[-1]
    set_drop_path(backbone.visual, 0.6)
    torch.testing.assert_close(backbone.eval()(images)[-1], before)
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0, 0.6)
    learning = backbone.train()
    norms = [m for m in learning.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.eval()
    assert not torch.equal(learning(images)[-1], learning(images)[-1])


def test_drop_path_without_a_place_is_refused() -> None:
    with pytest.raises(CapwrightError, match="set drop_path=0"):
        set_drop_path(nn.Sequential(nn.Linear(2, 2)), 0.1)
    set_drop_path(nn.Sequential(nn.Linear(2, 2)), 0.0)
