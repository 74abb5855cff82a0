"""Mobile towers: sizes against the published ones, training, and folding for inference."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from capwright import models
from capwright.models import towers
from capwright.models.mobile import reparameterize

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
# (model, backbone, millions of parameters of the image tower in MobileCLIP, arXiv 2311.17049)
PUBLISHED = [
    ("MobileCLIP2-S0", "fastvit_mci0", 11.4),
    ("MobileCLIP-S1", "fastvit_mci1", 21.5),
    ("MobileCLIP-S2", "fastvit_mci2", 35.7),
    ("MobileCLIP2-S2", "fastvit_mci2", 35.7),
]


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def with_tower(name: str, image_size: int = 64, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    vision = {"timm_model_name": name, "image_size": image_size, "timm_pool": "avg"}
    return towers.build({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})


def move_statistics(model: Any, size: int, steps: int = 2) -> None:
    """Training passes that move every batch norm, and layer scales that let every branch count."""
    for name, parameter in model.visual.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
        elif ".bn." in name or "identity." in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    model.train()
    with torch.no_grad():
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            towers.encode_image(model, torch.randn(4, 3, size, size, generator=generator) + step)
    model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backbone", "published"), PUBLISHED)
def test_image_towers_have_the_published_size(name: str, backbone: str, published: float) -> None:
    with torch.device("meta"):
        model = towers.build(name)
    assert model.visual.trunk.default_cfg["architecture"] == backbone
    folded = millions(reparameterize(model.eval().to_empty(device="cpu")).visual)
    # the published numbers are those of inference, the projection to the embedding included
    assert round(folded, 1) == published
    # in training the branches add at most 0.5%
    assert folded < millions(model.visual) < 1.005 * folded


def test_vit_b_16_has_the_published_size() -> None:
    with torch.device("meta"):
        model = towers.build("ViT-B-16")
    assert millions(model) == pytest.approx(149.6, abs=0.1)  # CLIP with ViT-B/16 as a whole
    assert millions(model.visual) == pytest.approx(86.2, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastvit_mci0", "fastvit_mci1", "fastvit_mci2"])
def test_mci_trains_and_folds(name: str) -> None:
    model = with_tower(name)
    image, patches = towers.embed_with_patches(model.train(), torch.randn(2, 3, 64, 64))
    assert patches.shape[2:] == (2, 2)
    (image.sum() + patches.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.visual.parameters())
    del image, patches
    model.zero_grad()
    images = torch.randn(2, 3, 96, 96)
    move_statistics(model, 64)
    with torch.no_grad():
        before = towers.encode_image(model, images)
        after = towers.encode_image(reparameterize(model), images)
    assert before.std() > 1e-2
    assert (before - after).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ViT-B-16", "MobileCLIP-S1", "MobileCLIP-S2", "MobileCLIP2-S0", "MobileCLIP2-S2"]
)
def test_named_models_train_at_a_small_size(name: str) -> None:
    model = towers.build(name).train()
    tokens = torch.zeros(2, model.context_length, dtype=torch.long)
    tokens[:, :3] = torch.tensor([[49406, 320, 49407], [49406, 530, 49407]])
    image = towers.encode_image(model, torch.randn(2, 3, 64, 64))
    text = towers.encode_text(model, tokens)
    assert image.shape == text.shape == (2, 512)
    (image * text).sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {"logit_scale"}


def test_the_small_tower_trains_and_folds() -> None:
    model = towers.build("nano-mci")
    assert sum(p.numel() for p in model.visual.trunk.parameters()) == 1_284_260
    assert millions(model.visual) == pytest.approx(1.33, abs=0.01)
    assert model.visual.image_size == (64, 64)
    images = torch.randn(2, 3, 64, 64)
    image, patches = towers.embed_with_patches(model.train(), images)
    assert image.shape == (2, 128)
    assert patches.shape == (2, 160, 8, 8)
    image.sum().backward()
    assert all(p.grad is not None for p in model.visual.parameters())
    move_statistics(model, 32)
    names, before = list(model.state_dict()), towers.encode_image(model, images)
    folded = models.reparameterize(model)
    assert not folded.training
    assert (towers.encode_image(folded, images) - before).abs().max() < 1e-4
    assert millions(folded.visual) < millions(model.visual)
    assert list(model.state_dict()) == names  # the original is as it was, and trains on
    assert torch.equal(towers.encode_image(model, images), before)
    towers.encode_image(model.train(), images).sum().backward()


def test_folding_without_moved_statistics_would_show() -> None:
    # the control of the tests above: statistics that move after folding do change the output
    model, images = with_tower("capwright_mci_nano_s8").eval(), torch.randn(2, 3, 64, 64)
    folded = reparameterize(model)
    move_statistics(model, 32)
    different = towers.encode_image(folded, images) - towers.encode_image(model, images)
    assert different.abs().max() > 1e-2


def test_a_tower_without_branches_is_copied() -> None:
    model, images = with_tower("capwright_vit_nano_s8").eval(), torch.randn(2, 3, 64, 64)
    copy = reparameterize(model)
    assert torch.equal(towers.encode_image(copy, images), towers.encode_image(model, images))
    assert copy is not model


def test_the_last_stage_sees_the_whole_picture() -> None:
    tower = timm.create_model("capwright_mci_nano_s8").eval()
    for block in tower.modules():
        if hasattr(block, "gamma"):
            nn.init.constant_(block.gamma, 0.5)
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    towers.dense_features(tower, images)[0, :, 0, 0].sum().backward()
    assert images.grad is not None
    assert images.grad[0, :, -8:, -8:].abs().sum() > 0  # attention reaches the other corner


def test_pictures_with_channels_last_train_as_others() -> None:
    """Their backward pass corrupted the heap; a crash here is that."""
    torch.manual_seed(0)
    model = towers.build("nano-mci").train()
    images = torch.randn(8, 3, 64, 64)
    gradients = []
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        for _ in range(2):
            model.zero_grad()
            towers.embed_with_patches(model, given)[1].square().mean().backward()
        gradients.append(model.visual.trunk.stem[0].conv_kxk[0].conv.weight.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)
