"""A tiny CoCa, saved as open_clip does: its words are those of open_clip, and come in batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from open_clip import coca_model
from PIL import Image
from safetensors.torch import save_file

from capwright.captions.describe import coca
from capwright.captions.describe.coca import Coca, Config, build
from capwright.captions.describe.protocol import Caption
from capwright.core.errors import CapwrightError
from capwright.models import text, towers

WORDS = "a red green blue amber square circle line dog cat on the left right of grass ."
CONTEXT = 16


def picture(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Coloured noise, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def save_coca(folder: Path, *, seed: int = 0, plain: bool = True, cls: bool = True) -> Path:
    """Random weights with strong embeddings, so that pictures and words matter."""
    folder.mkdir(parents=True)
    vocabulary = text.write_word_tokenizer(
        folder / "tokenizer", [WORDS], vocabulary=100, min_count=1
    )
    for file in (folder / "tokenizer").iterdir():
        file.rename(folder / file.name)
    (folder / "tokenizer").rmdir()
    common = {"context_length": CONTEXT, "vocab_size": vocabulary, "width": 32, "heads": 2}
    tower = {"embed_cls": cls, "output_tokens": True, **text.word_text_config(vocabulary)}
    if not plain:
        tower |= {"block_type": "custom", "qk_norm": True}
    config = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16,
            "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
        },
        "text_cfg": {**common, "layers": 2, **tower},
        "multimodal_cfg": {**common, "layers": 2, "attn_pooler_heads": 2},
        "custom_text": True,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = towers.build(config)
        for name, weight in model.named_parameters():
            if weight.ndim == 2 or name.endswith(("embedding", "cls_emb")):
                torch.nn.init.normal_(weight, std=0.35)
    save_file(
        {name: weight.contiguous() for name, weight in model.state_dict().items()},
        folder / towers.WEIGHTS_FILE,
    )
    written = {"model_cfg": config, "preprocess_cfg": towers.preprocess_config(config)}
    (folder / towers.CONFIG_FILE).write_text(json.dumps(written))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_coca(tmp_path_factory.mktemp("coca") / "tiny-coca")


@pytest.fixture
def open_clip_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip 3.3 gives up generating where transformers has no beam search of the old form; what
    its other ways need is still there."""
    for name in (
        "LogitsProcessorList",
        "MinLengthLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "StoppingCriteriaList",
        "MaxLengthCriteria",
    ):
        monkeypatch.setattr(coca_model, name, getattr(transformers, name), raising=False)
    monkeypatch.setattr(coca_model, "_has_transformers", True)
    kinds = {"top_k": transformers.TopKLogitsWarper, "top_p": transformers.TopPLogitsWarper}
    monkeypatch.setattr(coca_model, "GENERATION_TYPES", kinds)


def config(folder: Path, **changes: Any) -> Config:
    defaults: dict[str, Any] = {"max_tokens": 12, "first_sentence": False, "device": "cpu"}
    return Config(**{"model": str(folder), **defaults, **changes})


def texts(captions: list[list[Caption]]) -> list[list[str]]:
    return [[caption.text for caption in of_picture] for of_picture in captions]


@pytest.mark.parametrize("plain, seed", [(True, 11), (False, 6)])
def test_writes_the_words_of_open_clip(
    tmp_path: Path, open_clip_generate: None, plain: bool, seed: int
) -> None:
    captioner = Coca(config(save_coca(tmp_path / "m", plain=plain, seed=seed)))
    images = torch.stack([captioner.preprocess(picture(n)) for n in range(24)])
    ours = captioner.write(images, torch.rand(24, 1, 12))[:, 0]
    theirs = captioner.model.generate(
        images, seq_len=14, min_seq_len=5, generation_type="top_k", top_k=1,
        sot_token_id=captioner.start, eos_token_id=captioner.end, fixed_output_length=True,
    )[:, 1:13]  # fmt: skip
    assert len({tuple(row) for row in ours.tolist()}) > 9  # pictures are told apart
    assert 5 < (ours == captioner.end).any(1).sum() < 24  # some captions end early, some do not
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cls", [True, False])
def test_kept_keys_and_values_give_the_words_of_a_whole_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: bool
) -> None:
    captioner = Coca(config(save_coca(tmp_path / "m", cls=cls, seed=11), captions=3))
    images = torch.stack([captioner.preprocess(picture(n)) for n in range(16)])
    draws = torch.rand(16, 3, 12, generator=torch.Generator().manual_seed(0))
    kept = captioner.write(images, draws)
    monkeypatch.setattr(coca, "ResidualAttentionBlock", type(None))  # no block is known any more
    assert torch.equal(kept, captioner.write(images, draws))


def test_a_batch_of_five_has_the_captions_of_each_alone(folder: Path) -> None:
    captioner = Coca(config(folder, captions=4))
    pictures = [picture(n, (40 + 9 * n, 64)) for n in range(5)]
    together = captioner.describe(pictures)
    alone = [captioner.describe([one])[0] for one in pictures]
    backwards = captioner.describe(pictures[::-1])[::-1]
    assert together == alone == backwards
    assert captioner.describe([]) == []


def test_captions_are_several_and_come_again(folder: Path) -> None:
    pictures = [picture(n) for n in range(6)]
    first, again = (build(config(folder, captions=4), "short").describe(pictures) for _ in "12")
    other = build(config(folder, captions=4, seed=7), "short").describe(pictures)
    assert first == again
    assert [c[0] for c in first] == [c[0] for c in other]  # the likeliest has no chance in it
    assert texts(first) != texts(other)
    assert all(len({c.text for c in captions}) >= 3 for captions in first)
    assert [c.prompt for c in first[0]] == ["greedy", *["top-p 0.9"] * 3]
    assert [c.seed for c in other[0]] == [0, 7, 7, 7]
    assert all(4 <= c.tokens <= 12 and c.reason == "" for captions in first for c in captions)


def test_a_caption_is_cut_at_the_first_full_stop(folder: Path) -> None:
    pictures = [picture(n) for n in range(40)]
    whole = Coca(config(folder, min_tokens=0)).describe(pictures)
    cut = Coca(config(folder, min_tokens=0, first_sentence=True)).describe(pictures)
    assert any("." in captions[0].text[:-1] for captions in whole)
    for (a,), (b,) in zip(whole, cut, strict=True):
        head, stop, _ = a.text.partition(".")
        if head:
            assert b.text == head.rstrip() + stop
            assert b.tokens <= a.tokens
        else:
            assert (b.text, b.reason) == ("", "failed: empty caption")


def test_a_strip_of_a_picture_is_no_bomb(folder: Path) -> None:
    strip = picture(0, (1, 60_000))
    assert Coca(config(folder)).describe([strip])[0][0].reason == ""


def test_half_precision_describes_too(folder: Path) -> None:
    captioner = Coca(config(folder, precision="bf16", captions=2))
    assert captioner.dtype == torch.bfloat16
    assert all(c.text for captions in captioner.describe([picture(1)]) for c in captions)


def test_names_and_revisions(folder: Path, tmp_path: Path) -> None:
    other = save_coca(tmp_path / "tiny-coca", seed=1)
    first, second = Coca(config(folder)), Coca(config(other))
    assert first.name == second.name == "tiny-coca"
    assert len(first.revision) == 12
    assert first.revision != second.revision


def test_regions_are_crops_described(folder: Path) -> None:
    describer = build(config(folder, captions=3, batch_size=40), "regions")
    image = Image.new("RGB", (80, 80), "grey")
    image.paste(picture(3, (30, 30)), (0, 0))
    image.paste(picture(4, (30, 30)), (50, 50))
    (captions,) = describer.describe([image])
    boxes = [caption.box for caption in captions]
    assert (0, 0) in {box[:2] for box in boxes if box}
    assert (1, 1) in {box[2:] for box in boxes if box}
    assert len(set(boxes)) == len(boxes) < 13
    assert len({caption.text for caption in captions}) > 1


def test_long_captions_are_refused_unless_asked_for(folder: Path) -> None:
    with pytest.raises(CapwrightError, match="no long captions: set first_sentence=false"):
        build(config(folder, first_sentence=True), "long")
    assert build(config(folder), "long").describe([picture(0)])[0][0].text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"top_p": 0}, "top_p is 0, but must be above 0 and at most 1: try 0.9"),
        ({"captions": 0}, "captions is 0, but must be at least 1"),
        ({"min_tokens": 13}, r"min_tokens is 13, but must be from 0 to max_tokens \(12\)"),
        ({"max_tokens": 40}, "max_tokens is 40, but .* has 16 positions: set max_tokens to 16"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used .*: allowed are"),
        ({"device": "gpu"}, "device 'gpu' cannot be used .*: allowed are"),
    ],
)
def test_faults_in_the_configuration(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        Coca(config(folder, **changes))


def test_models_that_are_not_there_or_do_not_write(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=r"no checkpoint at '.*nothing': expected a folder"):
        build(config(tmp_path / "nothing"), "short")
    clip = towers.model_config("nano")
    model = towers.build(clip)
    save_file(dict(model.state_dict()), tmp_path / towers.WEIGHTS_FILE)
    written = {"model_cfg": clip, "preprocess_cfg": towers.preprocess_config(clip)}
    (tmp_path / towers.CONFIG_FILE).write_text(json.dumps(written))
    with pytest.raises(CapwrightError, match="is a CustomTextCLIP, which embeds and does not writ"):
        build(config(tmp_path), "short")
    (tmp_path / towers.WEIGHTS_FILE).write_bytes(b"torn")
    with pytest.raises(CapwrightError, match="could not be loaded"):
        coca.build(config(tmp_path), "short")
