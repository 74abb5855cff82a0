"""Pictures of another size than the tower's: positions interpolated for one pass, and gradients."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)

from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.models.kept_tokens import kept_tokens

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
VIT: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8,
}  # fmt: skip
RESNET: dict[str, Any] = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 8}


def build(vision: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return towers.build({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}).eval()


def interpolated(position_ND: torch.Tensor, old: int, rows: int, columns: int) -> torch.Tensor:
    grid = position_ND[1:].T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    return torch.cat([position_ND[:1], grid[0].flatten(1).T])


@pytest.mark.parametrize(("height", "width"), [(48, 48), (16, 16), (64, 24)])
def test_a_vision_transformer_with_interpolated_positions(height: int, width: int) -> None:
    model = build(VIT)
    names = list(model.state_dict())
    position = model.visual.positional_embedding
    images = torch.randn(2, 3, height, width)
    rows, columns = height // 8, width // 8
    # the same tower built for the other size, with positions interpolated by hand
    other = build(VIT | {"image_size": [height, width]})
    state = model.state_dict()
    state["visual.positional_embedding"] = interpolated(position, 4, rows, columns)
    other.load_state_dict(state)
    expected = other.encode_image(images)
    assert torch.allclose(towers.encode_image(model, images), expected, atol=1e-5)
    image, patches = towers.embed_with_patches(model, images)
    assert torch.allclose(image, expected, atol=1e-5)
    assert patches.shape == (2, 16, rows, columns)
    maps = towers.dense_features(model, images, layer=0)
    assert torch.allclose(maps, towers.dense_features(other, images, layer=0), atol=1e-5)
    # nothing is left behind
    assert model.visual.positional_embedding is position
    assert list(model.state_dict()) == names
    assert "positional_embedding" not in vars(model.visual)
    assert towers.encode_image(model, torch.randn(1, 3, 32, 32)).shape == (1, 16)


def test_the_gradient_reaches_the_positions() -> None:
    model = build(VIT).double()
    position = model.visual.positional_embedding
    images = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    loss = towers.encode_image(model, images).square().sum()
    (gradient,) = torch.autograd.grad(loss, position)
    assert (gradient[1:].abs().sum(dim=1) > 0).all()
    direction = torch.randn_like(position)
    with torch.no_grad():
        values = []
        for step in (1e-3, -1e-3):  # interpolation is in float32
            position += step * direction
            values.append(towers.encode_image(model, images).square().sum())
            position -= step * direction
    assert torch.isclose((values[0] - values[1]) / 2e-3, (gradient * direction).sum(), rtol=2e-3)


def test_a_failing_pass_leaves_nothing_behind() -> None:
    model = build(VIT)
    with pytest.raises(RuntimeError):
        towers.encode_image(model, torch.randn(1, 4, 48, 48))
    assert "positional_embedding" not in vars(model.visual)


def test_kept_tokens_at_another_size() -> None:
    for vision in (VIT, {"timm_model_name": "capwright_vit_nano_s8", "image_size": 32}):
        model, images = build(vision), torch.randn(2, 3, 48, 48)
        with kept_tokens(model, torch.arange(36).expand(2, -1)):
            every = towers.encode_image(model, images)
        with kept_tokens(model, torch.tensor([[3, 35], [0, 20]])):
            some = towers.encode_image(model, images)
        assert torch.allclose(every, towers.encode_image(model, images), atol=1e-5)
        assert not torch.allclose(some, every, atol=1e-3)


@pytest.mark.parametrize("wrapped", [False, True])
def test_activation_checkpointing_at_another_size(wrapped: bool) -> None:
    model, images = build(VIT).train(), torch.randn(2, 3, 48, 48)
    parameters = list(model.visual.parameters())
    loss = towers.encode_image(model, images).square().sum()
    plain = torch.autograd.grad(loss, parameters)
    if wrapped:
        blocks = set(model.visual.transformer.resblocks)
        apply_activation_checkpointing(model.visual, check_fn=lambda module: module in blocks)
    else:
        model.set_grad_checkpointing(True)
    again = torch.autograd.grad(
        towers.encode_image(model, images).square().sum(), list(model.visual.parameters())
    )
    for a, b in zip(plain, again, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (32, 64)])
def test_the_attention_pool_of_a_resnet_is_interpolated(height: int, width: int) -> None:
    model = build(RESNET)
    images = torch.randn(2, 3, height, width)
    position = model.visual.attnpool.positional_embedding
    resized = interpolated(position.detach(), 2, height // 32, width // 32)
    features = model.visual.layer1(model.visual.stem(images))
    features = model.visual.layer4(model.visual.layer3(model.visual.layer2(features)))
    model.visual.attnpool.positional_embedding = torch.nn.Parameter(resized)
    expected = model.visual.attnpool(features)
    model.visual.attnpool.positional_embedding = position
    assert torch.allclose(towers.encode_image(model, images), expected, atol=1e-5)
    image, patches = towers.embed_with_patches(model, images)
    assert torch.allclose(image, expected, atol=1e-5)
    assert patches.shape == (2, 256, height // 32, width // 32)


def test_a_timm_vision_transformer_takes_its_own_size_and_others() -> None:
    # its positions are made for 160 pixels, and stay so in the checkpoint
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 64}
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", num_classes=0, global_pool="token").eval()
    model = build(vision)
    trunk = model.visual.trunk
    assert trunk.pos_embed.shape == plain.pos_embed.shape
    own = trunk.patch_embed.img_size[0]
    plain.load_state_dict(trunk.state_dict())
    images = torch.randn(2, 3, own, own)
    assert torch.allclose(trunk(images), plain(images), atol=1e-5)
    for size in (64, 96):
        images = torch.randn(2, 3, size, size)
        cells = size // trunk.patch_embed.patch_size[0]
        image, patches = towers.embed_with_patches(model, images)
        assert patches.shape[2:] == (cells, cells)
        assert torch.allclose(image, towers.encode_image(model, images), atol=1e-5)
        again = timm.create_model("test_vit", num_classes=0, global_pool="token")
        again.load_state_dict(trunk.state_dict())
        again.set_input_size(size)  # what open_clip's `force_image_size` does
        assert torch.allclose(model.visual.head(again.eval()(images)), image, atol=1e-5)
    image.sum().backward()
    assert trunk.pos_embed.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["capwright_mci_nano_s8", "convnext_atto", "resnet10t"])
def test_convolutional_towers_take_any_size(name: str) -> None:
    model = build({"timm_model_name": name, "image_size": 64, "timm_pool": "avg"})
    images = torch.randn(1, 3, 96, 64)
    image, patches = towers.embed_with_patches(model, images)
    assert image.shape == (1, 16)
    assert patches.shape[2] > patches.shape[3]


@pytest.mark.parametrize(
    ("vision", "size", "message"),
    [
        (VIT, (36, 32), "36 x 32 pixels: both must be multiples of 8"),
        (RESNET, (64, 80), "64 x 80 pixels: both must be multiples of 32"),
        (
            {"timm_model_name": "test_vit", "image_size": 64},
            (64, 70),
            "64 x 70 pixels: both must be multiples of 16",
        ),
        (
            {"timm_model_name": "swin_tiny_patch4_window7_224", "image_size": 224},
            (64, 64),
            "64 x 64 pixels: this one takes 224 x 224 alone",
        ),
    ],
)
def test_a_size_that_does_not_fit(
    vision: dict[str, Any], size: tuple[int, int], message: str
) -> None:
    with torch.device("meta"):
        model = build(vision)
    with pytest.raises(CapwrightError, match=f"does not take pictures of {message}, so choose"):
        towers.encode_image(model, torch.empty(1, 3, *size, device="meta"))
