"""Initial weights: every source and form, resized positions, the report, and frozen towers."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from capwright.core.errors import CapwrightError
from capwright.models import init, text, towers

TEXT: dict[str, Any] = {
    "context_length": 16, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2,
}  # fmt: skip
VIT: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8,
}  # fmt: skip
NANO = {"timm_model_name": "capwright_vit_nano_s8", "image_size": 64, "timm_pool": "avg"}


def config(vision: dict[str, Any] = VIT, **text_settings: Any) -> dict[str, Any]:
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT | text_settings}


def build(seed: int, vision: dict[str, Any] = VIT, **text_settings: Any) -> Any:
    torch.manual_seed(seed)
    return towers.build(config(vision, **text_settings)).eval()


def write_folder(folder: Path, model: Any, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    saved = {"model_cfg": settings, "preprocess_cfg": towers.preprocess_config(settings)}
    (folder / towers.CONFIG_FILE).write_text(json.dumps(saved))
    save_file(dict(model.state_dict()), folder / towers.WEIGHTS_FILE)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def save_as(form: str, model: Any, folder: Path) -> str:
    state = dict(model.state_dict())
    if form == "open_clip training":
        wrapped = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, folder / "epoch_3.pt")
        return str(folder / "epoch_3.pt")
    if form == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return str(folder / "weights.safetensors")
    if form == "openai names":
        old = {name.removeprefix("text."): value for name, value in state.items()}
        assert "token_embedding.weight" in old
        torch.save(old | {"context_length": torch.tensor(16)}, folder / "old.pth")
        return str(folder / "old.pth")
    if form == "compiled":
        torch.save({f"_orig_mod.{name}": v for name, v in state.items()}, folder / "c.pt")
        return str(folder / "c.pt")
    place = folder / ("run/checkpoints/last" if form == "run folder" else "checkpoint")
    write_folder(place, model, config())
    return str(folder / "run" if form == "run folder" else place)


@pytest.mark.parametrize(
    "form",
    ["open_clip training", "safetensors", "openai names", "compiled", "run folder", "checkpoint"],
)
def test_every_form_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    source, model = build(1), build(2)
    assert not same(source.state_dict(), model.state_dict())
    report = init.load_initial(model, save_as(form, source, tmp_path))
    assert same(source.state_dict(), model.state_dict())
    assert set(report.loaded) == set(model.state_dict())
    assert (report.missing, report.unused, report.resized) == ((), (), ())


def test_a_model_in_the_old_form_takes_the_new_names(tmp_path: Path) -> None:
    source = build(1)
    torch.manual_seed(2)
    old = open_clip.CLIP(**config())
    init.load_initial(old, save_as("safetensors", source, tmp_path))
    tokens = torch.randint(1, 49, (2, 16))
    assert torch.allclose(old.encode_text(tokens), source.encode_text(tokens), atol=1e-6)


def test_only_one_tower(tmp_path: Path) -> None:
    source, model = build(1), build(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = init.load_initial(model, save_as("safetensors", source, tmp_path), only=["image"])
    assert {name.partition(".")[0] for name in report.loaded} == {"visual"}
    assert same(source.visual.state_dict(), model.visual.state_dict())
    assert report.missing == report.unused == ()
    for name, value in model.state_dict().items():
        assert name.startswith("visual.") or torch.equal(value, before[name])


def test_image_positions_are_those_of_a_pass_at_the_other_size(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 48, 48)
    source, model = build(1), build(2, VIT | {"image_size": 48})
    report = init.load_initial(model, save_as("safetensors", source, tmp_path))
    assert report.resized == ("visual.positional_embedding",)
    expected = towers.encode_image(source, images)  # interpolates the same positions in the pass
    assert torch.allclose(towers.encode_image(model, images), expected, atol=1e-5)
    assert "1 resized (visual.positional_embedding)" in str(report)


def test_positions_of_the_attention_pool_are_resized(tmp_path: Path) -> None:
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 8}
    source, model = build(1, resnet), build(2, resnet | {"image_size": 96})
    report = init.load_initial(model, save_as("safetensors", source, tmp_path))
    assert report.resized == ("visual.attnpool.positional_embedding",)
    images = torch.randn(1, 3, 96, 96)
    expected = towers.encode_image(source, images)
    assert torch.allclose(towers.encode_image(model, images), expected, atol=1e-5)


def test_a_longer_context_keeps_what_short_texts_mean(tmp_path: Path) -> None:
    source, model = build(1), build(2, context_length=40)
    path = save_as("safetensors", source, tmp_path)
    report = init.load_initial(model, path, kept_positions=6)
    assert report.resized == ("text.positional_embedding",)
    short = torch.tensor([[3, 5, 7, 9, 2, 49, *[0] * 10]])  # ends within the first 6
    longer = torch.nn.functional.pad(short, (0, 24))
    expected = source.encode_text(short)
    assert torch.allclose(model.encode_text(longer), expected, atol=1e-5)
    assert torch.isfinite(model.encode_text(torch.randint(1, 49, (2, 40)))).all()
    with pytest.raises(CapwrightError, match="kept_positions is 15: 0 to 14, two less than the 16"):
        init.load_initial(model, path, kept_positions=15)


def test_stretching_is_long_clip_s() -> None:
    # 77 to 248 positions at ratio 4, written out as a loop: three points between two old ones, and
    # the slope goes on beyond the last
    old = np.random.default_rng(0).standard_normal((77, 3))
    new = np.zeros((248, 3))
    new[:20] = old[:20]
    for i in range(56):
        for quarter in range(4):
            low, high = old[20 + i], old[21 + i]
            new[20 + 4 * i + quarter] = low + quarter / 4 * (high - low)
    for quarter in range(4):
        new[20 + 4 * 56 + quarter] = old[76] + quarter / 4 * (old[76] - old[75])
    found = init.stretch_positions(torch.from_numpy(old), 248)
    assert np.allclose(found.numpy(), new, atol=1e-5)
    assert found.dtype == torch.float64
    line = torch.arange(30.0)[:, None]
    assert torch.allclose(init.stretch_positions(line, 50, 10)[10:, 0], 10 + torch.arange(40) / 2)
    assert torch.equal(init.stretch_positions(line, 12), line[:12])  # shorter: the first ones


def test_the_class_position_of_coca_stays_the_last(tmp_path: Path) -> None:
    source, model = build(1, embed_cls=True), build(2, embed_cls=True, context_length=30)
    path = save_as("safetensors", source, tmp_path)
    init.load_initial(model, path, kept_positions=4)
    old, new = source.text.positional_embedding, model.text.positional_embedding
    assert (len(old), len(new)) == (17, 31)
    assert torch.equal(new[-1], old[-1])
    assert torch.equal(new[:4], old[:4])


def test_weights_of_a_timm_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    backbone = timm.create_model("test_vit", num_classes=7)
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    vision = {"timm_model_name": "test_vit", "image_size": 64, "timm_pool": "token"}
    model = build(2, vision)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = init.load_initial(model, tmp_path / "backbone.pth", only=["image"])
    assert report.missing == ("visual.head.proj.weight",)
    assert report.unused == ()
    assert torch.equal(
        model.visual.trunk.blocks[1].mlp.fc1.weight, backbone.blocks[1].mlp.fc1.weight
    )
    assert torch.equal(model.visual.head.proj.weight, before["visual.head.proj.weight"])

    asked: list[Any] = []

    def create(name: str, **settings: Any) -> Any:
        asked.append((name, settings))
        return backbone

    monkeypatch.setattr(init.timm, "create_model", create)
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.visual.trunk.pos_embed)
    init.load_initial(other, "timm:test_vit.r160_in1k", only=["image"])
    assert asked == [("test_vit.r160_in1k", {"pretrained": True, "num_classes": 0})]
    assert same(other.visual.trunk.state_dict(), model.visual.trunk.state_dict())


def test_positions_of_a_timm_backbone_at_another_size(tmp_path: Path) -> None:
    backbone = timm.create_model("test_vit", num_classes=0, img_size=96)
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    model = build(2, {"timm_model_name": "test_vit", "image_size": 96, "timm_pool": "token"})
    report = init.load_initial(model, tmp_path / "backbone.pth")
    assert report.resized == ("visual.trunk.pos_embed",)


def test_open_clip_tags_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = build(1), build(2)
    path = save_as("safetensors", source, tmp_path)
    asked: list[Any] = []
    monkeypatch.setattr(init, "download_pretrained", lambda c: asked.append(c["hf_hub"]) or path)
    init.load_initial(model, "ViT-B-32/laion2b_s34b_b79k")
    assert asked == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K/"]
    assert same(source.state_dict(), model.state_dict())

    model = build(2)
    monkeypatch.setattr(init, "download_pretrained_from_hf", lambda n: asked.append(n) or path)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config())
    init.load_initial(model, "hf-hub:someone/model")
    assert asked[1] == "someone/model"
    assert same(source.state_dict(), model.state_dict())

    def offline(name: str) -> str:
        raise OSError("no route")

    monkeypatch.setattr(init, "download_pretrained_from_hf", offline)
    with pytest.raises(CapwrightError, match=r"init 'hf-hub:a/b' cannot be fetched \(no route\)"):
        init.load_initial(model, "hf-hub:a/b")


def test_the_other_gelu_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "download_pretrained", lambda _: pytest.fail("fetched"))
    message = "was trained with QuickGELU, the model has GELU: choose the model with '-quickgelu'"
    with pytest.raises(CapwrightError, match=message):
        init.load_initial(build(1), "ViT-B-32/openai")
    quick = towers.build(config() | {"quick_gelu": True})
    write_folder(tmp_path / "plain", build(1), config())
    with pytest.raises(CapwrightError, match=r"with GELU, the model has QuickGELU: .* without"):
        init.load_initial(quick, tmp_path / "plain")
    write_folder(tmp_path / "quick", quick, config() | {"quick_gelu": True})
    init.load_initial(towers.build(config() | {"quick_gelu": True}), tmp_path / "quick")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.pt", "init '.*nothing.pt' does not exist: expected a file of weights"),
        ("nowhere", "no checkpoint at '.*nowhere': expected a folder"),
        ("code.pt", "code.pt' holds more than plain weights, which could be code, .*: save"),
        ("torn.safetensors", "torn.safetensors' cannot be read .*: fetch it again"),
        ("other.pt", "other.pt' has no weights that this model has .*'foreign.weight'"),
        ("empty.pt", "empty.pt' has no weights that this model has .*'nothing'"),
        ("words.pt", "text.token_embedding.weight is 90 x 16, the model has 50 x 16; the tok"),
        ("wide.pt", "visual.class_embedding is 24, the model has 16; choose the model that"),
        ("bare", "init '.*bare' has no weights: expected open_clip_model.safetensors"),
    ],
)
def test_what_does_not_fit_is_named(name: str, message: str, tmp_path: Path) -> None:
    torch.save(copy.deepcopy, tmp_path / "code.pt")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    torch.save({"foreign.weight": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save({}, tmp_path / "empty.pt")
    torch.save(build(1, vocab_size=90).state_dict(), tmp_path / "words.pt")
    torch.save(build(1, VIT | {"width": 24}).state_dict(), tmp_path / "wide.pt")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / towers.CONFIG_FILE).write_text(json.dumps({"model_cfg": config()}))
    model = build(2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CapwrightError, match=message):
        init.load_initial(model, tmp_path / name)
    assert same(before, model.state_dict())  # nothing was loaded by halves


def test_the_tokenizer_comes_with_the_weights(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    size = text.write_word_tokenizer(folder, ["a dog", "a dog"], vocabulary=9, min_count=1)
    settings = config(**text.word_text_config(size))
    (folder / towers.CONFIG_FILE).write_text(json.dumps({"model_cfg": settings}))
    tokenizer = init.tokenizer_of(folder)
    assert tokenizer is not None
    assert tokenizer(["a dog"]).tolist() == [[1, 4, 5, 2, *[0] * 12]]
    assert init.tokenizer_of(str(folder), context_length=5)(["a dog"]).tolist() == [[1, 4, 5, 2, 0]]
    assert init.tokenizer_of("ViT-B-32/openai")(["a dog"]).shape == (1, 77)
    assert init.tokenizer_of("weights.pt") is None
    assert init.tokenizer_of("timm:resnet18") is None


def test_a_frozen_tower_stays_in_eval() -> None:
    model = build(1, {"timm_model_name": "capwright_mci_nano_s8", "image_size": 32}).train()
    init.freeze(model, ["image"])
    for frozen in (model, copy.deepcopy(model)):
        before = {name: value.clone() for name, value in frozen.visual.state_dict().items()}
        frozen.train()
        assert frozen.training
        assert frozen.text.training
        assert not any(module.training for module in frozen.visual.modules())
        towers.encode_image(frozen, torch.randn(2, 3, 32, 32))
        assert same(before, frozen.visual.state_dict())
        assert not any(p.requires_grad for p in frozen.visual.parameters())
        assert all(p.requires_grad for p in frozen.text.parameters())
    assert all(m is not model.visual for m in frozen.modules())
    init.freeze(model, ["text"])
    assert not any(p.requires_grad for p in model.text.parameters())
    assert not model.train().text.training


@pytest.mark.parametrize("wrong", [["picture"], []])
def test_an_unknown_tower(wrong: list[str]) -> None:
    name = wrong[0] if wrong else ""
    with pytest.raises(CapwrightError, match=f"tower '{name}' is unknown: allowed are 'image'"):
        init.freeze(build(1), wrong)


@pytest.mark.parametrize(
    ("source", "mean"),
    [
        ("ViT-B-32/openai", 0.48145466),
        ("MobileCLIP2-S0/dfndr2b", 0.0),
        ("timm:vit_small_patch32_224.augreg_in21k", 0.5),
    ],
)
def test_pictures_are_normalised_as_the_weights_expect(source: str, mean: float) -> None:
    found = init.preprocessing_of(source)
    assert found["mean"][0] == pytest.approx(mean)
    assert len(found["std"]) == 3
