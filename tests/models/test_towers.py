"""Towers by name and configuration: dense features, trimmed text, kept tokens, checkpoints."""

import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch

from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.models.kept_tokens import kept_tokens

TEXT: dict[str, Any] = {
    "context_length": 16,
    "vocab_size": 50,
    "width": 16,
    "heads": 2,
    "layers": 2,
}
SMALL_VIT: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 3, "head_width": 8},
    "text_cfg": TEXT,
}


def build(vision: dict[str, Any] | None = None, **text: Any) -> Any:
    torch.manual_seed(0)
    vision = SMALL_VIT["vision_cfg"] if vision is None else vision
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT | text}
    return towers.build(config).eval()


def tokens(lengths: list[int], end: int = 49) -> torch.Tensor:
    """Random texts of the given lengths that end with `end`, padded with 0."""
    rows = torch.randint(3, 48, (len(lengths), 16))
    for row, length in zip(rows, lengths, strict=True):
        row[length - 1] = end
        row[length:] = 0
    return rows


@pytest.mark.parametrize("text", [{"pool_type": "argmax"}, {"pool_type": "eos", "eos_id": 49}])
def test_trimmed_text_gives_exactly_the_untrimmed_output(text: dict[str, Any]) -> None:
    model = build(**text).double()
    batch = tokens([3, 9, 5, 8])
    assert towers.trimmed_length(model, batch) == 9
    lengths: list[int] = []
    model.text.transformer.register_forward_pre_hook(lambda _, x: lengths.append(x[0].shape[1]))
    trimmed, whole = towers.encode_text(model, batch), model.encode_text(batch)
    assert lengths == [9, 16]
    assert torch.allclose(trimmed, whole, rtol=0, atol=1e-14)
    gradients = [
        torch.autograd.grad(out.square().sum(), model.text.transformer.resblocks[0].mlp[0].weight)[
            0
        ]
        for out in (trimmed, whole)
    ]
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-14)
    assert torch.equal(model.encode_text(batch), whole)  # the mask is whole again


def test_a_text_without_its_end_is_as_open_clip_has_it() -> None:
    model = build(pool_type="eos", eos_id=49).double()
    batch = tokens([4, 6])
    batch[1] = 7  # no end: open_clip pools at position 0
    assert torch.allclose(towers.encode_text(model, batch), model.encode_text(batch), atol=1e-14)


@pytest.mark.parametrize(
    "text",
    [{"pool_type": "last"}, {"no_causal_mask": True, "pool_type": "argmax"}, {"embed_cls": True}],
)
def test_towers_that_see_the_padding_are_not_trimmed(text: dict[str, Any]) -> None:
    model, batch = build(**text), tokens([3, 4])
    assert towers.trimmed_length(model, batch) == 16
    assert torch.equal(towers.encode_text(model, batch), model.encode_text(batch))


@pytest.mark.parametrize(
    ("vision", "shape"),
    [
        (None, (16, 4, 4)),
        ({"timm_model_name": "capwright_vit_nano_s8", "image_size": 32}, (128, 4, 4)),
        ({"timm_model_name": "convnext_atto", "image_size": 32}, (320, 1, 1)),
        (
            {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8},
            (256, 1, 1),
        ),
    ],
)
def test_dense_features_of_every_kind_of_tower(
    vision: dict[str, Any] | None, shape: tuple[int, ...]
) -> None:
    model = build(vision)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    features = towers.dense_features(model, images)
    assert features.shape == (2, *shape)
    assert towers.grid(model, 32) == (shape[1], shape[2], shape[0])
    features[0].sum().backward()
    assert images.grad is not None
    assert images.grad[0].abs().sum() > 0
    assert images.grad[1].abs().sum() == 0


def test_dense_features_of_a_timm_model_on_its_own() -> None:
    model = timm.create_model("capwright_vit_nano_s8", num_classes=0).eval()
    assert towers.dense_features(model, torch.randn(1, 3, 64, 48)).shape == (1, 128, 8, 6)


def test_the_last_layer_is_the_default_and_passes_the_final_norm() -> None:
    model = build()
    images = torch.randn(2, 3, 32, 32)
    last = towers.dense_features(model, images)
    assert torch.equal(last, towers.dense_features(model, images, layer=2))
    assert torch.equal(last, towers.dense_features(model, images, layer=-1))
    assert not torch.allclose(last, towers.dense_features(model, images, layer=0))
    assert torch.allclose(last.mean(dim=1), torch.zeros(2, 4, 4), atol=1e-5)  # of a layer norm


def test_dense_features_place_patches_where_they_are() -> None:
    model = build({"timm_model_name": "capwright_vit_nano_s8", "image_size": 64})
    images = torch.zeros(1, 3, 64, 64)
    base = towers.dense_features(model, images)
    images[:, :, 40:48, 8:16] = 3.0
    change = (towers.dense_features(model, images) - base).norm(dim=1)[0]
    row, column = divmod(int(change.argmax()), 8)
    assert abs(row - 5) <= 1  # the stem spreads it over the neighbours
    assert abs(column - 1) <= 1


def test_kept_tokens_are_the_chosen_ones_and_only_inside_the_block() -> None:
    for vision in (None, {"timm_model_name": "capwright_vit_nano_s8", "image_size": 32}):
        model = build(vision)
        images = torch.randn(2, 3, 32, 32)
        whole = model.encode_image(images)
        everything = torch.arange(16).flip(0).expand(2, -1)
        with kept_tokens(model, everything):
            assert torch.allclose(model.encode_image(images), whole, atol=1e-5)
        with kept_tokens(model, torch.tensor([[3, 1], [0, 15]])):
            assert towers.patch_features(model, images).shape[1] == 2
            assert not torch.allclose(model.encode_image(images), whole, atol=1e-3)
        with kept_tokens(model, torch.tensor([[1, 3], [15, 0]])):
            some = model.encode_image(images)
        with kept_tokens(model, torch.tensor([[3, 1], [0, 15]])):
            assert torch.allclose(model.encode_image(images), some, atol=1e-5)
        assert torch.equal(model.encode_image(images), whole)


def test_patch_dropout_of_a_configuration_is_taken_out() -> None:
    config = {**SMALL_VIT, "vision_cfg": SMALL_VIT["vision_cfg"] | {"patch_dropout": 0.5}}
    model = towers.build(config).train()
    assert towers.dense_features(model, torch.randn(1, 3, 32, 32)).shape == (1, 16, 4, 4)


def test_names_of_open_clip_work_and_configurations_are_not_changed() -> None:
    assert towers.model_config("ViT-B-32")["vision_cfg"]["patch_size"] == 32
    before = str(towers.NANO)
    towers.model_config("nano")["vision_cfg"]["image_size"] = 1
    assert str(towers.NANO) == before
    model = towers.build("nano")
    assert model.visual.image_size == (64, 64)
    assert sum(p.numel() for p in model.visual.parameters()) == 1_256_720
    assert towers.image_mean(model) == open_clip.OPENAI_DATASET_MEAN
    assert towers.image_std(model) == open_clip.OPENAI_DATASET_STD


def test_the_stem_does_not_mix_the_pictures_of_a_batch() -> None:
    model = build({"timm_model_name": "capwright_vit_nano_s8", "image_size": 64}).train()
    images = torch.randn(3, 3, 64, 64)
    assert torch.allclose(model.encode_image(images)[:1], model.encode_image(images[:1]), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("vit-b-32", "model 'vit-b-32' is unknown: did you mean .*ViT-B-32"),
        ({"embed_dim": 8, "vision_cfg": {}}, "the model configuration has no text_cfg: it needs"),
        (
            {**SMALL_VIT, "vision_cfg": {"widht": 3}},
            "the model configuration cannot be built .*widht.*compare it with open_clip's",
        ),
    ],
)
def test_a_wrong_model_is_named(config: Any, message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        towers.build(config)


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=r"no checkpoint at '.*nothing': expected a folder"):
        towers.load(tmp_path / "nothing")


def test_loading_leaves_logging_as_it_was(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from capwright.core.files import write_json

    model = build()
    folder = tmp_path / "checkpoints" / "last"
    config = towers.model_config(SMALL_VIT)
    write_json(
        folder / towers.CONFIG_FILE,
        {"model_cfg": config, "preprocess_cfg": towers.preprocess_config(config)},
    )
    save_file(model.state_dict(), folder / towers.WEIGHTS_FILE)
    before = logging.getLogger().level, list(logging.getLogger().handlers)
    for place in (folder, tmp_path, f"local-dir:{folder}"):
        loaded, preprocess, tokenizer = towers.load(place)
        assert not loaded.training
        images = torch.randn(1, 3, 32, 32)
        assert torch.equal(loaded.encode_image(images), model.encode_image(images))
        assert tokenizer(["a"]).shape == (1, 16)
        assert preprocess is not None
    assert (logging.getLogger().level, logging.getLogger().handlers) == before
