"""Towers by name and configuration: dense features, trimmed text, kept tokens, checkpoints."""

import json
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


@pytest.mark.parametrize(
    ("vision", "shape"),
    [
        (None, (16, 4, 4)),
        ({"timm_model_name": "capwright_vit_nano_s8", "image_size": 32}, (128, 4, 4)),
        ({"timm_model_name": "convnext_atto", "image_size": 32}, (320, 1, 1)),
        ({"timm_model_name": "capwright_mci_nano_s8", "image_size": 32}, (160, 4, 4)),
        ({"timm_model_name": "resnet10t", "image_size": 32}, (512, 1, 1)),
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


@pytest.mark.parametrize(
    ("vision", "shapes"),
    [
        (None, [(16, 4)] * 3),
        (SMALL_VIT["vision_cfg"] | {"attentional_pool": True}, [(16, 4)] * 3),
        ({"timm_model_name": "capwright_vit_nano_s8", "image_size": 32}, [(128, 4)] * 6),
        (
            {"timm_model_name": "capwright_mci_nano_s8", "image_size": 32},
            [(40, 8), (160, 4), (160, 4)],
        ),
        (
            {"timm_model_name": "convnext_atto", "image_size": 32},
            [(40, 8), (80, 4), (160, 2), (320, 1)],
        ),
        (
            {"timm_model_name": "resnet10t", "image_size": 32},
            [(64, 16), (64, 8), (128, 4), (256, 2), (512, 1)],
        ),
        (
            {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8},
            [(8, 8), (32, 8), (64, 4), (128, 2), (256, 1)],
        ),
    ],
)
def test_every_layer_has_its_map_and_no_other_layer_exists(
    vision: dict[str, Any] | None, shapes: list[tuple[int, int]]
) -> None:
    model, images = build(vision), torch.randn(1, 3, 32, 32)
    assert towers.layers(model) == len(shapes)
    for layer, (width, side) in enumerate(shapes):
        found = towers.dense_features(model, images, layer=layer)
        assert found.shape == (1, width, side, side)
        again = towers.dense_features(model, images, layer=layer - len(shapes))
        assert torch.equal(found, again)
    count = len(shapes)
    for wrong in (count, -count - 1):
        message = (
            f"layer {wrong} does not exist: the image tower has {count} layers, "
            f"so choose 0 to {count - 1}, or -1 to -{count} from the end"
        )
        with pytest.raises(CapwrightError, match=message):
            towers.dense_features(model, images, layer=wrong)


@pytest.mark.parametrize(
    "vision",
    [
        None,
        SMALL_VIT["vision_cfg"] | {"pool_type": "avg", "final_ln_after_pool": True},
        {"timm_model_name": "capwright_vit_nano_s8", "image_size": 32},
        {"timm_model_name": "capwright_mci_nano_s8", "image_size": 32},
        {"timm_model_name": "convnext_atto", "image_size": 32, "timm_proj": "mlp"},
        {"timm_model_name": "resnet10t", "image_size": 32, "timm_pool": "avg", "timm_proj": None},
        {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8},
    ],
)
def test_one_pass_gives_the_embedding_and_the_map(vision: dict[str, Any] | None) -> None:
    model = build(vision)
    images = torch.randn(2, 3, 32, 32)
    image, patches = towers.embed_with_patches(model, images)
    assert torch.allclose(image, model.encode_image(images), atol=1e-5)
    assert torch.allclose(image, towers.encode_image(model, images), atol=1e-5)
    assert torch.allclose(patches, towers.dense_features(model, images), atol=1e-5)
    (image.sum() + patches.square().sum()).backward()
    trained = [name for name, p in model.visual.named_parameters() if p.grad is not None]
    unused = {"trunk.head.fc.weight", "trunk.head.fc.bias"}
    assert set(dict(model.visual.named_parameters())) - set(trained) <= unused


def test_one_pass_over_a_timm_model_on_its_own() -> None:
    model = timm.create_model("capwright_vit_nano_s8", num_classes=0).eval()
    images = torch.randn(2, 3, 64, 64)
    image, patches = towers.embed_with_patches(model, images)
    assert torch.allclose(image, model(images), atol=1e-5)
    assert torch.allclose(image, towers.encode_image(model, images), atol=1e-5)
    assert patches.shape == (2, 128, 8, 8)


def test_coca_embeds_without_its_normalisation() -> None:
    torch.manual_seed(0)
    vision = SMALL_VIT["vision_cfg"] | {
        "attentional_pool": True,
        "attn_pooler_queries": 4,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    decoder = {"context_length": 16, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "multimodal_cfg": decoder}
    model = towers.build(config).eval()
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(1, 49, (2, 16))
    image, patches = towers.embed_with_patches(model, images)
    assert patches.shape == (2, 16, 4, 4)
    assert torch.allclose(image, towers.encode_image(model, images), atol=1e-5)
    for ours, theirs in (
        (image, model.encode_image(images)),
        (towers.encode_text(model, tokens), model.encode_text(tokens)),
    ):
        norm = ours.norm(dim=-1, keepdim=True)
        assert (norm - 1).abs().min() > 1e-2
        assert torch.allclose(ours / norm, theirs, atol=1e-5)


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


@pytest.mark.parametrize("name", ["capwright_mci_nano_s8", "eva02_tiny_patch14_224"])
def test_towers_without_a_place_to_drop_patches_say_so(name: str) -> None:
    with torch.device("meta"):
        model = build({"timm_model_name": name})
    with (
        pytest.raises(CapwrightError, match="has no patches to drop: set patch_dropout=0"),
        kept_tokens(model, torch.zeros(1, 1, dtype=torch.long)),
    ):
        pass


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


def test_models_by_file_and_by_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    file.write_text(json.dumps(SMALL_VIT))
    expected = towers.model_config(SMALL_VIT)
    assert towers.model_config(str(file)) == towers.model_config(file) == expected
    last = tmp_path / "checkpoints" / "last"
    last.mkdir(parents=True)
    (last / towers.CONFIG_FILE).write_text(json.dumps({"model_cfg": SMALL_VIT}))
    assert towers.model_config(tmp_path) == towers.model_config(str(last)) == expected
    assert towers.build(file).visual.image_size == (32, 32)
    file.write_text("{")
    for wrong in (file, tmp_path / "nothing.json"):
        with pytest.raises(CapwrightError, match=r"model file '.*json' cannot be read .*expected"):
            towers.model_config(wrong)


def test_a_hub_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "get_model_config", offline)
    with pytest.raises(CapwrightError, match=r"'hf-hub:a/b' cannot be fetched .no route to host"):
        towers.model_config("hf-hub:a/b")


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
