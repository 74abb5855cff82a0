import pickle
from pathlib import Path

import numpy as np
import pytest

from capwright.captions import lexicon as module
from capwright.captions.lexicon import (
    Lexicon,
    LexiconConfig,
    build_lexicon,
    corpus_lexicon,
    split_words,
    wordnet_lemmas,
)
from capwright.captions.runner import stage_folder
from capwright.core.errors import CapwrightError
from capwright.corpus.index import write_index_shard
from capwright.corpus.sidecars import write_sidecar

WEB = [
    "a tamworth pig - shop",
    "photo of a pig",
    "pig HD wallpaper",
    "tamworth pig!!",
    "a pear, 2004",
]
HUMAN = [
    "A Tamworth pig stands on the left before a plain wall.",
    "A pig lies there; a bunch of pears.",
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("An F-22 Raptor.", ["An", "F-22", "Raptor", "."]),
        ("plumber’s wrench_12.jpg", ["plumber's", "wrench", "_", "12", ".", "jpg"]),
        ("", []),
    ],
)
def test_words_keep_hyphens_and_leave_marks(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_names_are_what_people_name_and_the_web_uses_too() -> None:
    names = build_lexicon(HUMAN, WEB, min_web_count=2).names
    assert names == ("pig", "tamworth pig")  # no "plain wall", no "bunch", no "pig stands"


def test_the_web_alone_names_what_it_says_often() -> None:
    assert build_lexicon([], ["a pear by us"] * 4).names == ("pear",)
    assert build_lexicon([], ["a pear by us"] * 3).names == ()


def test_the_longest_name_is_found_and_plurals_too() -> None:
    lexicon = Lexicon(("pig", "tamworth pig", "pear"))
    assert lexicon.names_in("Two Tamworth pigs, a pig and some pears.") == [
        "tamworth pig",
        "pig",
        "pear",
    ]
    assert lexicon.names_in("pigeon, spear") == []
    assert Lexicon(()).names_in("a pig") == []


def test_regular_plurals_are_found_and_a_name_of_its_own_comes_first() -> None:
    lexicon = Lexicon(("berry", "box", "bus", "glass", "glasses", "key", "pears"))
    said = "Berries, boxes, buses, keys, a glass, glasses, pears, keies"
    names = ["berry", "box", "bus", "key", "glass", "glasses", "pears"]
    assert lexicon.names_in(said) == names


def test_matching_agrees_with_a_search_at_every_place() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        names = {" ".join(rng.choice(list("abc"), rng.integers(1, 5))) for _ in range(6)}
        words = list(rng.choice(list("abcd"), rng.integers(0, 14)))
        found, at = [], 0
        while at < len(words):
            sizes = [n for n in range(1, 5) if " ".join(words[at : at + n]) in names]
            sizes = [n for n in sizes if at + n <= len(words)]
            if sizes:
                found.append((at, at + max(sizes), " ".join(words[at : at + max(sizes)])))
            at += max(sizes, default=1)
        assert [tuple(span) for span in Lexicon(tuple(sorted(names))).find(words)] == found


def test_a_lexicon_travels_by_its_names() -> None:
    lexicon = Lexicon(("pig",))
    assert lexicon.names_in("two pigs") == ["pig"]
    copy = pickle.loads(pickle.dumps(lexicon))
    assert copy == lexicon and copy.names_in("two pigs") == ["pig"]


def test_wordnet_gives_visible_things_and_no_persons() -> None:
    lemmas = set(wordnet_lemmas())
    assert {"killer whale", "f - 16"} & lemmas == {"killer whale"}
    assert {"pig", "tennis racket", "bald eagle", "guinea pig", "tiger lily"} <= lemmas
    assert not {"best", "banker", "abhorrer", "organism", "thing", "matter", "c"} & lemmas
    assert not any(lemma.endswith("photograph") for lemma in lemmas)
    assert len(lemmas) > 25_000


def test_a_lemma_of_one_word_counts_only_as_a_noun_of_the_corpus() -> None:
    lemmas = ["can", "blue", "orange", "pig", "killer whale"]
    web = [
        "we can can it",
        "a can of fish",
        "a blue boat, the blue sea",
        "an orange cat",
        "a blue car",
    ]
    web += ["the orange", "two oranges", "a pig running", "a pig"]
    assert build_lexicon([], web, lemmas=lemmas).names == ("killer whale", "orange", "pig")


def corpus(work: Path, human: str = "") -> None:
    """Two shards of alt text, and descriptions."""
    for shard in ("a", "b"):
        rows = [
            {"key": f"{i}", "shard": shard, "file": "", "text": f"Duroc pig {i}", "json": human}
            for i in range(10)
        ]
        write_index_shard(work / "index", shard, rows, {})
        described = [{"key": f"{i}", "source": "d", "text": "A pig stands."} for i in range(10)]
        write_sidecar(stage_folder(work, "describe-x"), shard, described)


def test_a_corpus_is_read_once_and_its_lexicon_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(tmp_path)
    config = LexiconConfig(wordnet=False)
    first = corpus_lexicon(tmp_path, "describe-x", "human_caption", config)
    assert first.names == ("pig",)  # the descriptions name it, and the web says it
    monkeypatch.setattr(module, "build_lexicon", lambda *_, **__: pytest.fail("built again"))
    assert corpus_lexicon(tmp_path, "describe-x", "human_caption", config) == first
    monkeypatch.undo()
    small = LexiconConfig(wordnet=False, sample=1)
    assert corpus_lexicon(tmp_path, "describe-x", "human_caption", small).names == ()
    assert len(list((tmp_path / "models/lexicon").glob("*.json"))) == 2
    with pytest.raises(CapwrightError, match="sample is 0, but must be at least 1 text"):
        LexiconConfig(sample=0)


def test_where_people_wrote_captions_the_descriptions_are_not_read(tmp_path: Path) -> None:
    corpus(tmp_path, human='{"human_caption": "A Duroc pig in the sun."}')
    config = LexiconConfig(wordnet=False)
    lexicon = corpus_lexicon(tmp_path, "describe-x", "human_caption", config)
    assert lexicon.names == ("duroc pig",)
