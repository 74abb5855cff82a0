"""The learned beginning through the text tower, against the tower's parts called by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from capwright.adapt.learned_tokens import PrefixedTexts
from capwright.adapt.zsseg import prompt_learning
from capwright.adapt.zsseg.crops import region_features
from capwright.adapt.zsseg.prompt_learning import learn, prompt_loss, rate, seen_crops
from capwright.adapt.zsseg.prompts import (
    PromptSettings,
    class_vectors,
    fixed_texts,
)
from capwright.adapt.zsseg.splits import split_of
from capwright.core.errors import CapwrightError
from capwright.datasets.sets import SegmentationItem, SegmentationSet
from capwright.dense.words import Vocabulary
from capwright.evaluate.encoder import Encoder, load_encoder

NAMES = ("cat", "a large tree", "sea")
SETTINGS = PromptSettings(
    vectors=4, steps=12, batch=4, samples_per_class=3, warmup_steps=2, save_every=5
)


def by_hand(encoder: Encoder, texts: PrefixedTexts, name: str) -> Tensor:
    """Embeddings joined, positions added, blocks with a causal mask, read at the end."""
    tower = encoder.model.text
    tokens = encoder.tokenizer([name])[0]
    end = int(tokens.argmax())
    rows = tower.token_embedding(tokens)
    joined = torch.cat([rows[:1], texts.prefix_MD, rows[1 : end + 1]])
    x = joined + tower.positional_embedding[: len(joined)]
    mask = torch.full((len(joined), len(joined)), float("-inf")).triu(1)
    x = tower.transformer(x[None], attn_mask=mask)[0]
    embedded = tower.ln_final(x)[-1] @ tower.text_projection
    return embedded / embedded.norm()


def test_vectors_stand_between_start_and_name(encoder: Encoder) -> None:
    texts = PrefixedTexts(encoder, 4, seed=3)
    found = texts(NAMES)
    expected = torch.stack([by_hand(encoder, texts, name) for name in NAMES])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_tower_as_it_was_afterwards(encoder: Encoder) -> None:
    tokens = encoder.tokenizer(["a cat"])
    before = encoder.model.encode_text(tokens)
    PrefixedTexts(encoder, 4)(NAMES)
    torch.testing.assert_close(encoder.model.encode_text(tokens), before, rtol=0, atol=0)


def test_the_beginning_alone_learns(encoder: Encoder) -> None:
    encoder.model.requires_grad_(False)
    texts = PrefixedTexts(encoder, 4)
    assert [name for name, _ in texts.named_parameters()] == ["prefix_MD"]
    assert list(texts.state_dict()) == ["prefix_MD"]
    texts(NAMES).sum().backward()
    assert texts.prefix_MD.grad is not None and texts.prefix_MD.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in encoder.model.parameters())
    assert 0.01 < float(PrefixedTexts(encoder, 4).prefix_MD.detach().std()) < 0.04


def test_openai_s_own_class_of_towers(encoder: Encoder) -> None:
    """open_clip's CLIP keeps the text tower's parts on itself."""
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32}
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    texts = PrefixedTexts(replace(encoder, model=clip), 4)
    found = texts(NAMES)
    moved = texts.prefix_MD.detach() + 1
    with torch.no_grad():
        texts.prefix_MD.copy_(moved)
    assert found.shape == (3, 16) and not torch.allclose(found, texts(NAMES))


def test_what_does_not_fit_into_the_context(encoder: Encoder) -> None:
    assert PrefixedTexts(encoder, 13)(["cat"]).isfinite().all()  # start, 13, cat, end: 16
    with pytest.raises(CapwrightError, match="14 learned vectors and the name 'cat' do not fit"):
        PrefixedTexts(encoder, 14)(["cat"])


def test_class_vectors_against_plain_sums(encoder: Encoder) -> None:
    vocabulary = Vocabulary(classes=(("cat", "lion", "lynx"), ("sea",)))
    templates = ("a {}", "the {}.")
    found = fixed_texts(encoder, vocabulary, templates)
    expected = []
    for names in vocabulary.classes:
        rows = []
        for name in names:
            with torch.no_grad():
                raw = encoder.model.encode_text(
                    encoder.tokenizer([t.format(name) for t in templates])
                )
            unit = raw.double().numpy()
            mean = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).mean(axis=0)
            rows.append(mean / np.linalg.norm(mean))
        mean = np.mean(rows, axis=0)
        expected.append(mean / np.linalg.norm(mean))
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-5)


def test_loss_and_rate_against_plain_numbers() -> None:
    torch.manual_seed(0)
    features, texts = torch.randn(3, 8), torch.randn(4, 8)
    logits = 7.0 * features.double().numpy() @ texts.double().numpy().T
    rows = [np.log(np.exp(row).sum()) - row[c] for row, c in zip(logits, (0, 3, 1), strict=True)]
    found = prompt_loss(features, torch.tensor([0, 3, 1]), texts, 7.0)
    assert float(found) == pytest.approx(float(np.mean(rows)), rel=1e-5)
    assert [rate(PromptSettings(), step) for step in (0, 99)] == [0.005, 0.005]
    assert rate(PromptSettings(), 8000) == pytest.approx(0.01)
    assert rate(PromptSettings(), 15_999) == pytest.approx(0.0, abs=1e-8)


CLASSES = ("grey", "red", "blue", "green", "gold")


def toys(count: int = 6) -> SegmentationSet:
    """Stripes of the first four classes; the last is on no picture."""

    def read(index: int) -> SegmentationItem:
        draws = np.random.default_rng(index)
        seg = np.repeat(np.arange(4, dtype=np.uint8), 10)[:, None].repeat(24, axis=1)
        pixels = draws.integers(0, 256, (40, 24, 3)).astype(np.uint8)
        return SegmentationItem(key=str(index), image=Image.fromarray(pixels), seg_HW=seg)

    keys = tuple(map(str, range(count)))
    return SegmentationSet(name="toys", keys=keys, read=read, classes=CLASSES, has_background=False)


VOCABULARY = Vocabulary(classes=tuple((name,) for name in CLASSES))
SPLIT = split_of("toys", CLASSES, ("blue",))


def crops(
    encoder: Encoder, folder: Path, numbers: Sequence[int] = range(6)
) -> tuple[Tensor, Tensor]:
    return seen_crops(encoder, toys(), numbers, SPLIT, SETTINGS, folder=folder, seed=0)


def test_crops_are_of_seen_classes_as_at_the_test(encoder: Encoder, tmp_path: Path) -> None:
    features, classes = crops(encoder, tmp_path)
    assert sorted(classes.tolist()) == [0] * 3 + [1] * 3 + [2] * 3  # of (grey, red, green, gold)
    first = int(np.random.default_rng(0).permutation(6)[0])
    item = toys()[first]
    masks = torch.from_numpy(np.stack([item.seg_HW == c for c in (0, 1, 3)]))
    image = encoder.normalised(np.array(item.image)[None])[0]
    expected = region_features(encoder, [image], [masks])[0].features_QE
    torch.testing.assert_close(features[:3], expected)


def test_no_crop_of_a_seen_class(encoder: Encoder, tmp_path: Path) -> None:
    split = split_of("toys", CLASSES, CLASSES[:4])
    with pytest.raises(CapwrightError, match="none of 6 pictures shows a seen class"):
        seen_crops(encoder, toys(), range(6), split, SETTINGS, folder=tmp_path, seed=0)


def learned(encoder: Encoder, folder: Path) -> Tensor:
    texts = PrefixedTexts(encoder, SETTINGS.vectors, seed=0)
    found = crops(encoder, folder)
    learn(texts, VOCABULARY, SPLIT.seen, found, 10.0, SETTINGS, folder=folder, seed=0)
    return texts.prefix_MD.detach()


def test_a_run_that_was_cut_off_ends_as_an_unbroken_one(
    clip_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(None, model=clip_config)
    encoder.model.requires_grad_(False)
    whole = learned(encoder, tmp_path / "whole")
    calls = []

    def cut_off(settings: PromptSettings, step: int) -> float:
        calls.append(step)
        if step == 8:
            raise KeyboardInterrupt
        return rate(settings, step)

    with monkeypatch.context() as patched:
        patched.setattr(prompt_learning, "rate", cut_off)
        with pytest.raises(KeyboardInterrupt):
            learned(encoder, tmp_path / "cut")
    torch.testing.assert_close(learned(encoder, tmp_path / "cut"), whole, rtol=0, atol=0)
    assert not torch.equal(whole, PrefixedTexts(encoder, SETTINGS.vectors, seed=0).prefix_MD)


def test_learning_lowers_the_loss(encoder: Encoder, tmp_path: Path) -> None:
    encoder.model.requires_grad_(False)
    features, classes = crops(encoder, tmp_path)
    words = Vocabulary(classes=tuple(VOCABULARY.classes[number] for number in SPLIT.seen))
    texts = PrefixedTexts(encoder, 4, seed=0)

    def loss() -> float:
        with torch.no_grad():
            return float(
                prompt_loss(features, classes, class_vectors(texts(words.names), words), 10.0)
            )

    before = loss()
    settings = replace(SETTINGS, steps=60, batch=9)
    learn(
        texts, VOCABULARY, SPLIT.seen, (features, classes), 10.0, settings, folder=tmp_path, seed=0
    )
    assert loss() < before - 0.01
