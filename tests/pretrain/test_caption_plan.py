"""The mixture as a tree, the settings, and what is said of wrong ones."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from caption_corpus import Corpus, draw, one_picture
from capwright.core.config import override
from capwright.core.errors import CapwrightError
from capwright.corpus.sidecars import join_captions
from capwright.pretrain import caption_plan
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.settings.sampling import CaptionSource, Sampling


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("captions"))


def test_the_tree_counts_what_is_drawn(corpus: Corpus) -> None:
    sampler = corpus.sampler(Sampling(), short=((0.0, 3.0), (1.0, 1.0)), alt=1.0)
    lines = sampler.tree(0.5)
    assert lines[0] == f"captions · mix, one a picture · {len(sampler.rows)} pictures"
    shares = []
    for name, weight in (("short", 2.0), ("alt", 1.0)):
        total = 0.0
        for row in sampler.rows:
            have = {n: w for n, w in (("short", 2.0), ("alt", 1.0)) if corpus.expected[n][row]}
            total += (weight if name in have else 0) / sum(have.values())
        shares.append(f"{total / len(sampler.rows):.1%}")
    texts = [t for texts in corpus.expected["short"] for t in texts]
    pictures = sum(bool(texts) for texts in corpus.expected["short"])
    assert lines[1] == (
        f"├─ short  {pictures} pictures · {len(texts)} captions · 3.0 words · "
        f"probability 3 at 0%, 1 at 100% → {shares[0]} of captions"
    )
    assert lines[2].startswith("└─ alt    ")
    assert lines[2].endswith(f"probability 1 → {shares[1]} of captions")
    drawn = [t for e in range(100) for t in draw(sampler, 0.5, epoch=e).texts]
    short = sum(text.startswith("short") for text in drawn) / len(drawn)
    assert short == pytest.approx(float(shares[0][:-1]) / 100, abs=0.015)


def test_the_tree_of_the_other_modes(tmp_path: Path) -> None:
    index = one_picture(tmp_path)
    short = CaptionSource(name="short", folder=tmp_path / "short", score="score")
    sources = [CaptionSource(name="alt"), short]

    def tree(**changes: Any) -> str:
        return "\n".join(CaptionSampler(index, sources, Sampling(**changes)).tree(0.0))

    assert tree(mode="both", by_score=2) == (
        "captions · both, a real and a synthetic one a picture · 1 pictures\n"
        "├─ real · 1 pairs a pass\n"
        "│  └─ alt  1 pictures · 2 captions · 3.0 words · probability 1 → 100.0% of captions\n"
        "└─ synthetic · 1 pairs a pass\n"
        "   └─ short  1 pictures · 2 captions · 4.0 words · probability 1 → 100.0% of captions, "
        "by score^2"
    )
    assert "→ in 100.0% of captions, by score" in tree(mode="concat")
    many = tree(mode="multi_positive", max_captions=3, sub_caption=0.5)
    assert "multi_positive, up to 3 a picture · 50% of those over 20 words cut to 1-3 sen" in many
    assert "of captions" not in many


@pytest.mark.parametrize("block", [1, 2, 7, caption_plan.BLOCK])
def test_words_are_counted_as_python_splits_them(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    texts = ["a dog", " two  cats ", "x", " ", "one\ttwo\nthree ", "chat à l'école", "z"]
    index = pa.table({"key": ["1"], "shard": ["a"], "text": [texts[0]], "more_texts": [texts[1:]]})
    monkeypatch.setattr(caption_plan, "BLOCK", block)
    expected = sum(len(text.split()) for text in texts) / len(texts)
    assert caption_plan.mean_words(join_captions(index, None)) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CaptionSource(name="a", probability=0), "'a' has probability 0: it must be above"),
        (
            lambda: CaptionSource(name="a", probability=((0, 0), (1, 0))),
            "it must be above 0; leave",
        ),
        (lambda: CaptionSource(name="a", probability=-1), "no value may be below 0"),
        (lambda: CaptionSource(name="a", probability=((0.5, 1), (0.2, 1))), "shares that rise"),
        (lambda: CaptionSource(name="a", score="clip"), "alt text of the index, which has no col"),
        (lambda: Sampling(max_captions=0), "max_captions is 0: it must be 1 or more, or null"),
        (lambda: Sampling(by_score=-1), r"by_score is -1: a power of 0 \(evenly\) or more"),
        (lambda: Sampling(by_score=float("nan")), "by_score is nan: a power"),
        (lambda: Sampling(sub_caption=1.5), "sub_caption is 1.5: a probability from 0 to 1"),
        (lambda: Sampling(sub_caption_over_words=-1), "sub_caption_over_words is -1: it must"),
        (lambda: Sampling(sub_caption_sentences=0), "sub_caption_sentences is 0: it must be 1"),
        (lambda: Sampling(sub_caption_draws=0), "sub_caption_draws is 0: it must be 1 or more"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        make()


def test_settings_are_read_from_the_command_line() -> None:
    lines = ["mode=both", 'real=["alt","human"]', "max_captions=5", "separator= and "]
    sampling = override(Sampling(), lines)
    assert (sampling.mode, sampling.real, sampling.max_captions) == ("both", ("alt", "human"), 5)
    source = override(CaptionSource(name="a"), ["probability=[[0, 1], [1, 0.25]]"])
    assert source.probability == ((0, 1), (1, 0.25))
    with pytest.raises(CapwrightError, match="'mode=mixed' has a wrong value"):
        override(Sampling(), ["mode=mixed"])


def test_errors_name_the_source_and_what_is_there(tmp_path: Path) -> None:
    index = one_picture(tmp_path, (0.5, None))
    short = CaptionSource(name="short", folder=tmp_path / "short")
    alt = CaptionSource(name="alt")

    def message(sources: list[CaptionSource], **changes: Any) -> str:
        with pytest.raises(CapwrightError) as error:
            CaptionSampler(index, sources, Sampling(**changes))
        return str(error.value)

    both = message([short], mode="both")
    assert both.startswith("sampling.mode is both with the real sources [] of ['short']: it needs")
    assert "so name the real ones in sampling.real" in message([alt], mode="both")
    unknown = message([short, alt], mode="both", real=("human",))
    assert unknown == "sampling.real names the caption source 'human': captions has short, alt"
    clip = CaptionSource(name="short", folder=tmp_path / "short", score="clip")
    assert (
        "has no column 'clip' of numbers for the captions of a: such columns are seed, score, "
        in message([clip])
    )
    words = CaptionSource(name="short", folder=tmp_path / "short", score="model")
    assert "has no column 'model' of numbers" in message([words])
    gone = CaptionSource(name="gone", folder=tmp_path / "gone", score="score")
    assert "has no captions for a: run the stage that writes them first" in message([gone])
    for values, text in (((None, None), "is empty: choose a column"), ((-0.5, 1), "value -0.5:")):
        one_picture(tmp_path, values)
        assert text in message([CaptionSource(name="s", folder=tmp_path / "short", score="score")])
    one_picture(tmp_path, (float("inf"), 1.0))
    scored = CaptionSource(name="s", folder=tmp_path / "short", score="score")
    assert "has the value inf: a caption is drawn by its score" in message([scored])
    none = CaptionSource(name="none", folder=tmp_path / "short", sources=("nobody",))
    assert message([none]).startswith("none of the 1 pictures has a caption from none: check")
    # a score that is not used is not looked at
    assert CaptionSampler(index, [clip], Sampling(by_score=0)).tree(0.0)
