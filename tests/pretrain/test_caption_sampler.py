"""Caption sampling against plain loops: what is drawn, how often, and that no more decides."""

import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from caption_corpus import (
    ALT,
    LONG,
    MORE,
    ROWS,
    SHORT,
    Corpus,
    assert_drawn_as,
    by_picture,
    draw,
    one_picture,
)
from capwright.corpus.sidecars import captions_of
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.draws import Draws
from capwright.pretrain.settings.sampling import CaptionSource, Sampling


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("captions"))


# --- the join -------------------------------------------------------------------------------------


def test_the_join_is_that_of_plain_lists(corpus: Corpus) -> None:
    for name, expected in corpus.expected.items():
        assert captions_of(corpus.index, corpus.source(name).folder) == expected
        sampler = CaptionSampler(corpus.index, [corpus.source(name)], Sampling())
        assert list(sampler.texts()) == [text for texts in expected for text in texts]
        pictures = sum(bool(texts) for texts in expected)
        assert sampler.counts() == {name: (pictures, sum(map(len, expected)))}
        assert sampler.rows.tolist() == [i for i, texts in enumerate(expected) if texts]
        assert sampler.without_caption == ROWS - pictures


def test_the_digest_is_of_the_captions_and_not_of_how_they_lie(corpus: Corpus) -> None:
    def digest(index: pa.Table, *names: str, **changes: Any) -> str:
        sources = [corpus.source(name, **changes) for name in names]
        return CaptionSampler(index, sources, Sampling()).digest()

    whole = digest(corpus.index, "alt", "short")
    cut = pa.concat_tables([corpus.index.slice(0, 7), corpus.index.slice(7)])
    assert cut["text"].num_chunks == 2 and digest(cut, "alt", "short") == whole
    assert re.fullmatch("[0-9a-f]{12}", whole)
    texts = corpus.index["text"].to_pylist()
    texts[5] = "another"
    changed = corpus.index.set_column(2, "text", pa.array(texts))
    moved = corpus.index.set_column(
        2, "text", pa.array([*corpus.index["text"].to_pylist()[1:], ""])
    )
    others = [digest(changed, "alt", "short"), digest(moved, "alt", "short")]
    others += [digest(corpus.index, "short", "alt"), digest(corpus.index, "short")]
    others.append(digest(corpus.index, "short", score="score"))
    assert len({whole, *others}) == len(others) + 1


def test_two_captions_are_not_one_of_the_same_letters() -> None:
    def digest(*texts: str) -> str:
        index = pa.table(
            {"key": ["1"], "shard": ["a"], "text": [texts[0]], "more_texts": [list(texts[1:])]}
        )
        return CaptionSampler(index, [CaptionSource(name="alt")], Sampling()).digest()

    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc")}) == 3


# --- mix ------------------------------------------------------------------------------------------


def test_mix_is_the_rule_that_older_runs_were_drawn_by(corpus: Corpus) -> None:
    probabilities = {"short": 0.7, "alt": 0.25, "long": 1.3}
    sampler = corpus.sampler(Sampling(), **probabilities)
    for epoch in range(5):
        found = by_picture(draw(sampler, epoch=epoch), len(sampler.rows))
        for row, pairs in zip(sampler.rows, found, strict=True):
            # as written out in the first version: two numbers, the source and then the caption
            first, second = Draws(3, np.array([row]), np.array([epoch])).uniform("caption", 2)[0]
            have = {n: corpus.expected[n][row] for n in probabilities if corpus.expected[n][row]}
            bound, total = 0.0, sum(probabilities[n] for n in have)
            for name in have:
                bound += probabilities[name]
                if first * total < bound:
                    break
            assert pairs == [(0, have[name][int(second * len(have[name]))])]


def test_a_schedule_moves_the_mixture_with_the_samples_seen(tmp_path: Path) -> None:
    sources = [
        CaptionSource(name="alt", probability=((0.0, 1.0), (1.0, 0.0))),
        CaptionSource(name="short", folder=tmp_path / "short", probability=1.0),
    ]
    sampler = CaptionSampler(one_picture(tmp_path), sources, Sampling())
    for share, alt in ((0.0, 1.0), (0.5, 0.5), (0.9, 0.1), (1.0, 0.0)):
        counts = Counter(draw(sampler, share, many=4000).texts)
        expected = dict.fromkeys((ALT, MORE), alt / 2) | dict.fromkeys(SHORT, 0.5)
        assert_drawn_as(counts, expected)


def test_sources_that_all_stand_at_zero_count_the_same(tmp_path: Path) -> None:
    late = ((0.8, 0.0), (0.8, 1.0))
    sources = [
        CaptionSource(name="short", folder=tmp_path / "short", probability=late),
        CaptionSource(name="long", folder=tmp_path / "long", probability=late),
    ]
    sampler = CaptionSampler(one_picture(tmp_path), sources, Sampling())
    counts = Counter(draw(sampler, 0.1, many=2000).texts)
    assert_drawn_as(counts, dict.fromkeys(SHORT + LONG, 0.25))


def test_a_picture_without_a_caption_has_no_pair(corpus: Corpus) -> None:
    sampler = CaptionSampler(corpus.index, [corpus.source("alt")], Sampling(), required=False)
    assert len(sampler.rows) == ROWS and sampler.without_caption > 0
    for mode in ("mix", "concat", "multi_positive"):
        sampler.sampling = Sampling(mode=mode, sub_caption=0.5)
        found = by_picture(draw(sampler), ROWS)
        assert [bool(pairs) for pairs in found] == [bool(t) for t in corpus.expected["alt"]]
        bare = np.array([i for i, texts in enumerate(corpus.expected["alt"]) if not texts])
        none = sampler.choose(bare, Draws(0, bare, bare), 0.0)
        assert none.texts == [] and len(none.picture_P) == len(none.set_P) == 0


# --- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [None, ("alt", "short")])
def test_both_gives_a_real_and_a_synthetic_caption(
    corpus: Corpus, real: tuple[str, ...] | None
) -> None:
    sampling = Sampling(mode="both", real=real)
    sampler = corpus.sampler(sampling, short=0.5, alt=1.0, long=0.5)
    names = set(real or ("alt",))
    for epoch in range(4):
        found = by_picture(draw(sampler, epoch=epoch), len(sampler.rows))
        for row, pairs in zip(sampler.rows, found, strict=True):
            in_set: tuple[list[str], list[str]] = ([], [])
            for name, texts in corpus.expected.items():
                in_set[name not in names].extend(texts[row])
            assert [s for s, _ in pairs] == [s for s in (0, 1) if in_set[s]]
            assert all(text in in_set[s] for s, text in pairs)


def test_both_draws_its_sets_apart(tmp_path: Path) -> None:
    sources = [
        CaptionSource(name="alt"),
        CaptionSource(name="short", folder=tmp_path / "short", probability=3.0),
        CaptionSource(name="long", folder=tmp_path / "long"),
    ]
    sampler = CaptionSampler(one_picture(tmp_path), sources, Sampling(mode="both"))
    chosen = draw(sampler, many=8000)
    pairs = zip(chosen.texts[::2], chosen.texts[1::2], strict=True)
    synthetic = dict.fromkeys(SHORT, 3 / 8) | dict.fromkeys(LONG, 1 / 8)
    expected = {f"{a}|{b}": p / 2 for a in (ALT, MORE) for b, p in synthetic.items()}
    assert_drawn_as(Counter("|".join(pair) for pair in pairs), expected)


def test_both_leaves_a_set_out_while_its_sources_stand_at_zero(tmp_path: Path) -> None:
    sources = [
        CaptionSource(name="alt", probability=((0.5, 1.0), (0.5, 0.0))),
        CaptionSource(name="short", folder=tmp_path / "short"),
    ]
    sampler = CaptionSampler(one_picture(tmp_path), sources, Sampling(mode="both"))
    assert draw(sampler, 0.4).set_P.tolist() == [0, 1]
    assert draw(sampler, 0.6).set_P.tolist() == [1]


# --- concat ---------------------------------------------------------------------------------------


def test_concat_joins_one_of_each_source(corpus: Corpus) -> None:
    names = ("short", "alt", "long")
    for order in ("fixed", "random"):
        sampling = Sampling(mode="concat", order=order, separator=" | ")
        sampler = corpus.sampler(sampling, short=0.5, alt=1.0, long=0.1)
        orders = Counter()
        for epoch in range(6):
            found = by_picture(draw(sampler, epoch=epoch), len(sampler.rows))
            for row, ((number, text),) in zip(sampler.rows, found, strict=True):
                parts = text.split(" | ")
                have = [name for name in names if corpus.expected[name][row]]
                said = [part.split()[0] for part in parts]
                assert number == 0 and sorted(said) == sorted(have)
                assert all(p in corpus.expected[n][row] for p, n in zip(parts, said, strict=True))
                if len(have) == 3:
                    orders["".join(n[0] for n in said)] += 1
        if order == "fixed":
            assert set(orders) == {"sal"}
        else:
            assert_drawn_as(orders, dict.fromkeys(("sal", "sla", "asl", "als", "lsa", "las"), 1.0))


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        (". ", "a red car. A car and a road."),
        (" ", "a red car. A car and a road."),
        ("; ", "a red car.; A car and a road."),
    ],
)
def test_a_separator_does_not_repeat_a_full_stop(
    tmp_path: Path, separator: str, expected: str
) -> None:
    index = one_picture(tmp_path)
    sources = [CaptionSource(name=n, folder=tmp_path / n) for n in ("short", "long")]
    sampling = Sampling(mode="concat", order="fixed", separator=separator)
    assert expected in draw(CaptionSampler(index, sources, sampling), many=60).texts


def test_concat_says_a_thing_once(tmp_path: Path) -> None:
    index = one_picture(tmp_path)
    sources = [CaptionSource(name=n, folder=tmp_path / "long") for n in ("one", "other")]
    texts = set(draw(CaptionSampler(index, sources, Sampling(mode="concat")), many=60).texts)
    first = LONG[0].removesuffix(".")
    last = LONG[1].removesuffix(".")
    assert texts == {*LONG, f"{first}. {LONG[1]}", f"{last}. {LONG[0]}"}


# --- multi_positive -------------------------------------------------------------------------------


def test_multi_positive_is_every_caption_once(corpus: Corpus) -> None:
    sampler = corpus.sampler(Sampling(mode="multi_positive"), short=0.1, alt=1.0, long=9.0)
    found = by_picture(draw(sampler), len(sampler.rows))
    for row, pairs in zip(sampler.rows, found, strict=True):
        assert pairs == [(0, t) for n in ("short", "alt", "long") for t in corpus.expected[n][row]]


def test_multi_positive_drops_a_repeated_text(tmp_path: Path) -> None:
    sources = [CaptionSource(name=n, folder=tmp_path / "long") for n in ("one", "other")]
    sampler = CaptionSampler(one_picture(tmp_path), sources, Sampling(mode="multi_positive"))
    assert draw(sampler, many=2).texts == [*LONG, *LONG]


def test_multi_positive_draws_without_replacement_by_probability(tmp_path: Path) -> None:
    sources = [
        CaptionSource(name="alt", probability=2.0),
        CaptionSource(name="short", folder=tmp_path / "short", score="score"),
        CaptionSource(name="long", folder=tmp_path / "long", probability=((0.5, 0.0), (0.5, 1.0))),
    ]
    index = one_picture(tmp_path)
    weights = {ALT: 1.0, MORE: 1.0, SHORT[0]: 0.25, SHORT[1]: 0.75}  # scores 0.2 and 0.6

    def texts_of(most: int, share: float, mode: Any = "multi_positive") -> list[list[str]]:
        sampling = Sampling(mode=mode, max_captions=most)
        chosen = draw(CaptionSampler(index, sources, sampling), share, many=6000)
        return [[text for _, text in pairs] for pairs in by_picture(chosen, 6000)]

    # one drawn is the mode mix
    assert_drawn_as(Counter(t for (t,) in texts_of(1, 0.0)), weights)
    assert_drawn_as(Counter(t for (t,) in texts_of(1, 0.0, "mix")), weights)
    pairs = {}
    total = sum(weights.values())
    for a, first in weights.items():
        for b, second in weights.items():
            if a != b:
                key = "|".join(sorted((a, b)))
                pairs[key] = pairs.get(key, 0) + first / total * second / (total - first)
    assert_drawn_as(Counter("|".join(sorted(texts)) for texts in texts_of(2, 0.0)), pairs)
    order = (ALT, MORE, *SHORT, *LONG)  # as the sources stand, however they were drawn
    assert all(t == sorted(t, key=order.index) for t in texts_of(3, 1.0))
    assert {len(texts) for texts in texts_of(9, 0.0)} == {4}
    assert {len(texts) for texts in texts_of(9, 1.0)} == {6}


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "power", "expected"),
    [
        ((0.2, 0.6), 1.0, (0.25, 0.75)),
        ((0.2, 0.6), 2.0, (0.1, 0.9)),
        ((0.2, 0.6), 0.0, (0.5, 0.5)),
        ((None, 0.6), 1.0, (0.0, 1.0)),
        ((0.0, 0.0), 1.0, (0.5, 0.5)),
    ],
)
@pytest.mark.parametrize("mode", ["mix", "both", "concat", "multi_positive"])
def test_a_caption_is_drawn_by_its_score_to_a_power(
    tmp_path: Path,
    mode: Any,
    scores: tuple[float | None, ...],
    power: float,
    expected: tuple[float, ...],
) -> None:
    index = one_picture(tmp_path, scores)
    short = CaptionSource(name="short", folder=tmp_path / "short", score="score")
    sources = [short, CaptionSource(name="alt", probability=0.1)]
    sampling = Sampling(mode=mode, by_score=power, max_captions=1, separator="|")
    chosen = draw(CaptionSampler(index, sources, sampling), many=4000)
    counts = Counter(p for text in chosen.texts for p in text.split("|") if p not in (ALT, MORE))
    assert_drawn_as(counts, dict(zip(SHORT, expected, strict=True)))


def test_scores_stay_with_their_captions_through_the_join(corpus: Corpus) -> None:
    source = corpus.source("short", score="score")
    sampler = CaptionSampler(corpus.index, [source], Sampling(by_score=40.0))  # the best, nearly
    found = by_picture(draw(sampler), len(sampler.rows))
    for row, ((_, text),) in zip(sampler.rows, found, strict=True):
        texts, scores = corpus.expected["short"][row], corpus.scores[row]
        assert scores[texts.index(text)] == max(scores)


# --- nothing else decides -------------------------------------------------------------------------

EVERY = [
    Sampling(),
    Sampling(mode="both", sub_caption=0.5, sub_caption_over_words=1),
    Sampling(mode="concat", sub_caption=0.5, sub_caption_over_words=1),
    Sampling(mode="multi_positive"),
    Sampling(mode="multi_positive", max_captions=2, sub_caption=0.5, sub_caption_draws=2),
]


@pytest.mark.parametrize("sampling", EVERY, ids=lambda s: f"{s.mode}-{s.max_captions}")
def test_a_choice_depends_on_seed_row_epoch_and_share_alone(
    corpus: Corpus, sampling: Sampling
) -> None:
    sources = [
        corpus.source("short", score="score", probability=((0.0, 1.0), (1.0, 0.2))),
        corpus.source("alt"),
        corpus.source("long"),
    ]
    sampler = CaptionSampler(corpus.index, sources, sampling)

    def texts(row_B: NDArray[np.int64], of: CaptionSampler = sampler, **changes: Any) -> Any:
        v = {"seed": 1, "epoch": 4, "share": 0.3} | changes
        chosen = of.choose(
            row_B, Draws(v["seed"], row_B, np.full(len(row_B), v["epoch"])), v["share"]
        )
        return dict(zip(row_B.tolist(), by_picture(chosen, len(row_B)), strict=True))

    whole = texts(sampler.rows)
    mixed = np.random.default_rng(0).permutation(sampler.rows)
    assert texts(mixed) == whole
    assert texts(sampler.rows, pickle.loads(pickle.dumps(sampler))) == whole
    for row in sampler.rows[:20]:
        assert texts(np.array([row]))[row] == whole[row]
    twice = np.repeat(sampler.rows[:3], 2)
    pairs = by_picture(sampler.choose(twice, Draws(1, twice, np.full(6, 4)), 0.3), 6)
    assert pairs[::2] == pairs[1::2] == [whole[row] for row in sampler.rows[:3]]
    if sampling.mode != "multi_positive" or sampling.max_captions:
        assert texts(sampler.rows, seed=2) != whole != texts(sampler.rows, epoch=5)
