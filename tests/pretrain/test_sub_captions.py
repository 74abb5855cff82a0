"""Some sentences in the place of a long caption: whole ones, in a row, and never none."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caption_corpus import ALT, LONG, MORE, assert_drawn_as, by_picture, draw, one_picture
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.settings.sampling import CaptionSource, Sampling
from capwright.pretrain.sub_captions import sentences, shortened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog. A cat sits by it! Is it day?", ["A dog. ", "A cat sits by it! ", "Is it day?"]),
        ('A sign says "Stop." Cars wait', ['A sign says "Stop." ', "Cars wait"]),
        ("Mr. Smith in St. Louis, e.g. at 3.5 m", ["Mr. Smith in St. Louis, e.g. at 3.5 m"]),
        ("a dog ... ! and a cat. !", ["a dog ... ", "! and a cat. !"]),
        ("- a dog\n- a cat\n", ["- a dog\n", "- a cat\n"]),
        ("一只狗。一只猫。", ["一只狗。", "一只猫。"]),
        ("...", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected


def test_sub_captions_are_runs_of_sentences_with_the_stated_chances() -> None:
    parts = ["One is red.", "Two is blue.", "Three is green.", "Four is grey."]
    text = " ".join(parts)
    sampling = Sampling(sub_caption=0.6, sub_caption_over_words=11, sub_caption_sentences=2)
    rng = np.random.default_rng(0)
    counts = Counter(shortened(text, rng.random(3).tolist(), sampling) for _ in range(8000))
    expected = dict.fromkeys(parts, 0.6 / 2 / 4) | {text: 0.4}
    expected |= {f"{a} {b}": 0.6 / 2 / 3 for a, b in pairwise(parts)}
    assert_drawn_as(counts, expected)
    short = Sampling(sub_caption=1.0, sub_caption_over_words=12)
    assert shortened(text, [0.0, 0.0, 0.0], short) == text  # twelve words are not over twelve


@pytest.mark.parametrize("mode", ["mix", "both", "concat", "multi_positive"])
def test_sub_captions_are_contiguous_and_never_empty(tmp_path: Path, mode: Any) -> None:
    sources = [
        CaptionSource(name="long", folder=tmp_path / "long"),
        CaptionSource(name="alt", probability=0.5),
    ]
    sampling = Sampling(
        mode=mode, sub_caption=1.0, sub_caption_over_words=5, sub_caption_draws=3, separator="|"
    )
    chosen = draw(CaptionSampler(one_picture(tmp_path), sources, sampling), many=300)
    said = {part for text in chosen.texts for part in text.split("|")}
    one, two, three = "A red car.", "It stands on a road.", "Trees are behind it."
    runs = {one, two, three, f"{one} {two}", f"{two} {three}", f"{one} {two} {three}"}
    assert said == {ALT, MORE, LONG[1], *runs}
    pairs = by_picture(chosen, 300)
    if mode == "multi_positive":
        assert {len(p) for p in pairs} == {4, 5, 6}  # three others, and one to three runs
        assert all(len(set(p)) == len(p) for p in pairs)


def test_each_pair_has_sub_captions_of_its_own(tmp_path: Path) -> None:
    index = one_picture(tmp_path)
    sources = [CaptionSource(name=n, folder=tmp_path / "long") for n in ("one", "other")]
    sampling = Sampling(mode="both", real=("one",), sub_caption=1.0, sub_caption_over_words=0)
    chosen = draw(CaptionSampler(index, sources, sampling), many=200)
    assert len(set(zip(chosen.texts[::2], chosen.texts[1::2], strict=True))) > 20
