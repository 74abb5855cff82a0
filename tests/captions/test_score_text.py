import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest

from capwright.captions.runner import stage_folder
from capwright.captions.score import frequencies, text
from capwright.captions.score.frequencies import Frequencies, count
from capwright.captions.score.measures import Texts
from capwright.captions.score.tokens import count_tokens
from capwright.core.errors import CapwrightError
from capwright.corpus.index import index_shards, load_shard
from capwright.corpus.sidecars import read_sidecars, write_sidecar

TEXTS = [
    "A dog's ball, it'll roll!",
    "&lt;b&gt;caf&eacute;&lt;/b&gt; crème brûlée ½ &amp;amp; &#39;",
    "日本語のテキスト と 犬",
    "😀😀 emoji ❤️ 12345 3.14",
    "IMG_2034.JPG",
    "",
    "   ",
    "don't DON'T I'M we've 's",
    "ﬁne ligature “quotes” — dash",
    "Ünïcödé ÀÉÎ İstanbul ſhip",
    "broken â€™ mojibake sch√∂n",
    "<start_of_text> hi <end_of_text>",
    "a\tb\nc\x00d\x85e\u2028f",
    "supercalifragilisticexpialidocious" * 3,
    "हिन्दी में ١٢٣ ²³ Ⅷ",
]


def corpus(pictures: int = 1000) -> list[list[str]]:
    rng = np.random.default_rng(0)
    animals = [f"animal{chr(97 + i)}" for i in range(20)]
    places = [f"place{chr(97 + i)}" for i in range(20)]
    templates = ["photo of a {} in the {}", "{} at a {}", "the {} and the {}", "a {} by the {}"]
    found = []
    for _ in range(pictures):
        animal, place = rng.choice(animals), rng.choice(places)
        found.append([rng.choice(templates).format(animal, place)])
        if rng.random() < 0.1:
            found[-1].append("please ask before taking this home")
    return found


@pytest.fixture(scope="module")
def known() -> Frequencies:
    pictures = corpus()
    pictures[0].append("an animala tamworth")
    return count(frequencies.chunks(iter(pictures), 64), min_pictures=10, min_share=1e-4)


def test_tokens_are_open_clips() -> None:
    tokenizer = open_clip.SimpleTokenizer()
    assert count_tokens(TEXTS) == [len(tokenizer.encode(text)) for text in TEXTS]
    assert count_tokens(TEXTS) == count_tokens(TEXTS)
    assert count_tokens([]) == []


def test_no_model_is_imported() -> None:
    code = (
        "import sys\nfrom capwright.captions.score import text\n"
        "assert text.count_tokens(['a dog']) == [2]\n"
        "assert not {'torch', 'open_clip', 'transformers'} & set(sys.modules), 'too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words_are_counted_once_a_picture(known: Frequencies) -> None:
    pictures = corpus()
    batch = Texts(["animala unheard"])
    expected = sum(any("animala" in words for words in texts) for texts in pictures)
    assert known.pictures == 1000
    assert known.word_pictures(batch).tolist() == [expected + ("animala" not in pictures[0][0]), 1]


def test_chunks_do_not_matter(known: Frequencies) -> None:
    pictures = corpus(200)
    one, other = (count(frequencies.chunks(iter(pictures), n), 10, 0.0) for n in (7, 200))
    np.testing.assert_array_equal(one.words.hashes, other.words.hashes)
    np.testing.assert_array_equal(one.words.pictures, other.words.pictures)
    np.testing.assert_array_equal(one.phrases.hashes, other.phrases.hashes)


def test_rare_words_and_longer_names_are_more_specific(known: Frequencies) -> None:
    texts = ["a photo", "an animala", "a photo of an animala", "a tamworth animala", "of the", ""]
    photo, animal, both, exact, nothing, empty = known.specificity(Texts(texts)).tolist()
    assert nothing == empty == 0
    assert 0 < photo < both < animal < exact <= 1
    apart, together = known.specificity(Texts(["animala, placea", "animala placea"]))
    assert apart < together  # a mark between words ends a name


def test_boilerplate_is_what_stands_nowhere_else(known: Frequencies) -> None:
    texts = [
        "please ask before taking this home",
        "photo of a animala in the placea",
        "animalb: please ask before taking this home",
        "home", "",
    ]  # fmt: skip
    shares = known.boilerplate(Texts(texts)).tolist()
    assert shares == pytest.approx([1, 0, 6 / 7, 0, 0])


def test_frequencies_are_saved(known: Frequencies, tmp_path: Path) -> None:
    frequencies.save(tmp_path, known)
    again = frequencies.load(tmp_path)
    assert again.pictures == known.pictures
    for name in ("words", "phrases"):
        for part in ("hashes", "pictures"):
            np.testing.assert_array_equal(
                getattr(getattr(again, name), part), getattr(getattr(known, name), part)
            )


def test_an_empty_corpus_knows_nothing() -> None:
    known = count([], 10, 0.0)
    assert known.specificity(Texts(["a dog"])).tolist() == [0]
    assert known.boilerplate(Texts(["a dog"])).tolist() == [0]


def test_all_columns_of_a_text(known: Frequencies) -> None:
    columns = text.measure(
        [
            "two dogs playing in the park on a sunny day",
            "un chien dans le jardin de la maison",
            "please ask before taking this home",
            "IMG_2034.JPG",
            "animala animala animala animala animala animala animala",
        ],
        known,
    )
    assert columns["language"][:2] == ["en", "fr"]
    assert columns["language"][2:4] == ["und", "und"]
    assert columns["junk"] == ["", "", "boilerplate", "file name", ""]
    good, french, _, _, again = columns["score"]
    assert columns["score"][2:4] == [0, 0]
    assert min(good, french) > 0.5 > again
    assert columns["repeated"][4] > 0.5 and columns["repeated"][0] == 0
    assert columns["words"][:2] == [10, 8]
    assert columns["tokens"][0] == 10


def test_short_and_doubtful_texts_have_no_language() -> None:
    assert text.language_of("ab") == text.language_of("xq zw kk") == "und"


def described(work: Path) -> None:
    for shard in index_shards(work):
        keys = load_shard(work, shard, ["key"])["key"].to_pylist()
        rows = [{"key": key, "source": "describe-x", "text": f"a ruby {key}"} for key in keys]
        write_sidecar(stage_folder(work, "describe-x"), shard, rows)


def test_the_stage_scores_every_candidate(work: Path) -> None:
    described(work)
    summary = text.run(text.ScoreConfig(work=work))
    rows = read_sidecars(stage_folder(work, "score-text")).to_pylist()
    assert summary.captions == len(rows) == 48 + 48 + 24
    assert {row["source"] for row in rows} == {"alt", "human", "describe-x"}
    kinds = {row["junk"] for row in rows if row["text"] == "IMG_20.jpg"}
    assert kinds == {"file name"}
    assert all(row["score"] == 0 for row in rows if row["junk"])
    assert all(0 < row["score"] <= 1 for row in rows if not row["junk"])
    assert all(row["tokens"] > 0 and row["language"] for row in rows)
    assert len(text.dry_run(text.ScoreConfig(work=work), 3)) == len(
        [row for row in rows if row["key"] in {"000000000", "000000001", "000000002"}]
    )


def test_a_sample_is_the_same_every_time(work: Path) -> None:
    config = text.ScoreConfig(work=work, sample=10)
    documents = partial(text._documents, config, {})
    first = [texts for chunk in documents() for texts in chunk]
    assert first == [texts for chunk in documents() for texts in chunk]
    assert len(first) == 10
    text.run(config)
    folder = stage_folder(work, "score-text")
    before = read_sidecars(folder)
    (folder / "00001.parquet").unlink()
    assert text.run(config).shards_reused == 1
    assert read_sidecars(folder).equals(before)


def test_errors_say_what_is_allowed(work: Path) -> None:
    with pytest.raises(CapwrightError, match=r"sample is 0, but must be at least 1"):
        text.ScoreConfig(work=work, sample=0)
    with pytest.raises(CapwrightError, match=r"boilerplate_share is 2, .* from 0 to 1: try 1e-4"):
        text.ScoreConfig(work=work, boilerplate_share=2)
