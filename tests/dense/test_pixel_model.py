"""Backbone, pyramid and head together, at sizes that the encoder cannot take."""

from typing import Any

import pytest
import torch

from capwright.dense.backbone import load_backbone
from capwright.dense.fcn import FcnHead
from capwright.dense.linear_heads import LinearHead
from capwright.dense.pixel_model import PixelModel, pad_to
from capwright.dense.pyramid import build_pyramid
from capwright.dense.semantic_fpn import SemanticFpn
from capwright.dense.upernet import UperNet


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def vit(patch: int) -> dict[str, Any]:
    return {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 2 * patch, "patch_size": patch, "width": 16, "layers": 4, "head_width": 8,
        },
        "text_cfg": {"context_length": 8, "width": 8, "heads": 1, "layers": 1},
    }  # fmt: skip


ENCODERS = {
    "patch 14": vit(14), "patch 16": vit(16), "patch 32": vit(32), "nano": "nano",
    "mci": "nano-mci", "resnet": "timm:resnet18",
}  # fmt: skip


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("head", ["upernet", "semantic_fpn", "linear"])
def test_any_encoder_with_any_head_at_odd_sizes(encoder: str, head: str) -> None:
    backbone = load_backbone(None, model=ENCODERS[encoder])
    pyramid = None if head == "linear" else build_pyramid(backbone, width=8)
    if pyramid is None:
        model = PixelModel(backbone, None, LinearHead(backbone.channels, 3))
    elif head == "upernet":
        auxiliary = FcnHead(pyramid.channels, 3, width=8)
        model = PixelModel(backbone, pyramid, UperNet(pyramid.channels, 3, width=8), auxiliary)
    else:
        fpn = SemanticFpn(pyramid.channels, pyramid.strides, 3, pyramid_width=8, width=8)
        model = PixelModel(backbone, pyramid, fpn)
    model.train()
    logits, extra = model.both(torch.randn(2, 3, 67, 101))
    assert logits.shape == (2, 3, 67, 101)
    assert (extra is not None) == (head == "upernet")
    assert extra is None or extra.shape == logits.shape
    logits.square().mean().backward()
    first = next(p for p in backbone.parameters() if p.ndim == 4)
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def test_what_is_padded_does_not_show() -> None:
    backbone = load_backbone(None, model=vit(16)).eval()
    model = PixelModel(backbone, None, LinearHead(backbone.channels, 3)).eval()
    images = torch.randn(1, 3, 20, 30)
    padded = pad_to(images, 16)
    assert padded.shape == (1, 3, 32, 32)
    assert torch.equal(padded[..., :20, :30], images)
    assert padded[..., 20:, :].abs().sum() == padded[..., 30:].abs().sum() == 0
    torch.testing.assert_close(model(images), model(padded)[..., :20, :30])
    assert pad_to(padded, 16).shape == padded.shape


def test_the_auxiliary_head_rests_when_it_is_not_asked() -> None:
    backbone = load_backbone(None, model="nano")
    model = PixelModel(
        backbone, None, LinearHead(backbone.channels, 3), FcnHead(backbone.channels, 3, width=8)
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    logits, extra = model.both(images)
    assert extra is not None
    torch.testing.assert_close(model(images), logits)
