import random
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch

from capwright.captions.score.open_clip_judge import token_counter
from capwright.captions.score.windows import windows
from capwright.models.text import write_word_tokenizer


def count(text: str) -> int:
    return len(text.split())


def test_a_text_that_fits_is_one_window() -> None:
    assert windows("a b c", 3, count) == [("a b c", 1.0)]
    assert windows("", 3, count) == [("", 1.0)]


def test_cuts_come_after_sentences_then_clauses_then_words() -> None:
    text = "one two three. four five. six seven eight, nine ten eleven twelve thirteen."
    assert [window.text.strip() for window in windows(text, 5, count)] == [
        "one two three. four five.",
        "six seven eight,",
        "nine ten eleven twelve thirteen.",
    ]
    assert [window.text.strip() for window in windows(text, 4, count)] == [
        "one two three.",
        "four five.",
        "six seven eight,",
        "nine ten eleven twelve",
        "thirteen.",
    ]


def test_each_token_counts_the_same() -> None:
    found = windows("a b c d. e f. g", 4, count)
    assert [window.weight for window in found] == pytest.approx([4 / 7, 3 / 7])


@pytest.mark.parametrize("seed", range(5))
def test_no_word_is_lost_and_every_window_fits(seed: int) -> None:
    rng = random.Random(seed)
    marks = [" ", " ", " ", ", ", ". ", "; ", "\n", "! ", " (", ") "]
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    tokens, limit = token_counter(tokenizer)
    words = ["dog", "supercalifragilistic", "犬が好き", "😀", "it's", "IMG_2034.jpg"]
    text = "".join(rng.choice(words) + rng.choice(marks) for _ in range(80))
    found = windows(text, limit, tokens)
    assert len(found) > 5
    assert "".join("".join(window.text.split()) for window in found) == "".join(text.split())
    assert all(0 < tokens(window.text) <= limit for window in found)
    assert sum(window.weight for window in found) == pytest.approx(1)
    rows = tokenizer([window.text for window in found])
    assert all(row[row != 0][-1] == tokenizer.eot_token_id for row in rows)
    assert [int((row != 0).sum()) - 2 for row in rows] == [tokens(w.text) for w in found]


def test_one_word_of_many_tokens_is_cut_anywhere() -> None:
    found = windows("x" * 100, 8, lambda text: len(text))
    assert "".join(window.text for window in found) == "x" * 100
    assert max(len(window.text) for window in found) <= 8


def test_tokens_of_a_hugging_face_tokenizer_are_counted_without_its_marks(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path / "words", ["a dog sits"] * 2, vocabulary=50, min_count=1)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(tmp_path / "words"), context_length=12)
    tokens, limit = token_counter(tokenizer)
    assert (tokens("a dog"), limit) == (2, 10)
    assert int((tokenizer(["a dog"]) != 0).sum()) == 4
    inner = SimpleNamespace(tokenizer=tokenizer.tokenizer, clean_fn=str, context_length=12)
    assert token_counter(SimpleNamespace(**vars(inner), tokenizer_mode="clips"))[1] == 9
    assert torch.equal(tokenizer(["a dog"]), tokenizer([" a  dog "]))
