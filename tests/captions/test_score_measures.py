"""The passes over whole batches against loops over each text."""

import math
import random
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest

from capwright.captions.score.measures import ALNUM, SPECIAL, Texts, word_hashes

TEXTS = [
    "",
    "  ",
    "A dog's life, 2015!",
    "a dog a dog a dog a dog a dog a dog a dog a dog a dog",
    "one two three four five six one two three four five six",
    "(naïve) café — “Straße” İstanbul",
    "日本の犬 と 猫",
    "... 12 -- !!",
    "tab\tand\nline x\u3000y",
    "😀 cat 😀 cat",
]


def noisy(seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["ab", "Ab,", "(cd)", "e-f", "é", "7", "--", "gh\n", "\tij", "犬"]
    return [" ".join(rng.choices(words, k=rng.randint(0, 30))) for _ in range(200)]


def is_special(character: str) -> bool:
    return unicodedata.category(character)[0] not in "LM"


def split(text: str) -> list[str]:
    words = []
    for word in text.split():
        kept = [i for i, c in enumerate(word) if not is_special(c)]
        if kept:
            words.append(word[kept[0] : kept[-1] + 1].lower())
    return words


def grams(items: list[str] | str, length: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[i : i + length]) for i in range(len(items) - length + 1))


def character_repetition(text: str, length: int) -> float:
    counts = sorted(grams(text, length).values(), reverse=True)
    repeated = [count for count in counts if count > 1][: math.isqrt(len(counts))]
    return sum(repeated) / max(sum(counts), 1)


def word_repetition(words: list[str], length: int) -> float:
    counts = grams(words, length).values()
    return sum(count for count in counts if count > 1) / max(sum(counts), 1)


@pytest.mark.parametrize("texts", [TEXTS, noisy(0), noisy(1), [""], []])
def test_a_batch_measures_what_loops_do(texts: list[str]) -> None:
    batch = Texts(texts)
    characters = [max(len(text), 1) for text in texts]
    special = [sum(map(is_special, t)) / n for t, n in zip(texts, characters, strict=True)]
    alnum = [sum(map(str.isalnum, t)) / n for t, n in zip(texts, characters, strict=True)]
    np.testing.assert_allclose(batch.share(SPECIAL), special)
    np.testing.assert_allclose(batch.share(ALNUM), alnum)
    assert batch.word_count_T.tolist() == [len(split(text)) for text in texts]
    for n in (3, 10):
        expected = [character_repetition(text, n) for text in texts]
        np.testing.assert_allclose(batch.character_repetition(n), expected)
    for n in (1, 2, 5):
        expected = [word_repetition(split(text), n) for text in texts]
        np.testing.assert_allclose(batch.word_repetition(n), expected)


def test_words_hash_by_their_letters_alone_wherever_they_stand() -> None:
    texts = ["Dog, (dog) DOG. it's dogs", "a hot dog"]
    words = Texts(texts).words
    dog, dogs = word_hashes(["dog", "dogs"])
    assert (words.hash_W == dog).tolist() == [True, True, True, False, False, False, False, True]
    assert dog != dogs
    assert words.text_W.tolist() == [0] * 5 + [1] * 3
    assert texts[0][words.start_W[1] : words.end_W[1]] == "dog"


def test_hashes_are_the_same_in_every_version() -> None:
    # they are saved with the corpus's frequencies
    assert word_hashes(["dog"]).tolist() == [word_hashes(["x", "dog"])[1]]
    assert word_hashes(["dog"]).tolist() == [4933769186687013933]


def test_different_words_have_different_hashes() -> None:
    letters = "abcdefgh"
    words = [a + b + c + d for a in letters for b in letters for c in letters for d in letters]
    assert len(set(word_hashes(words).tolist())) == len(words)
    assert not re.search("[^a-h]", "".join(words))
