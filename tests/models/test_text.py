"""The word tokenizer: a function of the texts, frequent words first."""

from pathlib import Path

from open_clip.tokenizer import HFTokenizer

from capwright.models.text import write_word_tokenizer

TEXTS = ["A toucan, in front of 2 buses."] * 3 + ["IMG_2391.jpg a dog"] * 2 + ["a cat"]


def make(
    folder: Path, texts: list[str], *, vocabulary: int = 100, min_count: int = 2
) -> HFTokenizer:
    size = write_word_tokenizer(folder, texts, vocabulary=vocabulary, min_count=min_count)
    tokenizer = HFTokenizer(str(folder), context_length=8)
    assert len(tokenizer.tokenizer) == size
    return tokenizer


def test_words_cases_digits_and_unknown_ones(tmp_path: Path) -> None:
    tokenizer = make(tmp_path / "t", TEXTS)
    start, a, toucan, comma, end, *padding = tokenizer(["A TOUCAN,"])[0].tolist()
    assert (start, end, padding) == (1, 2, [0, 0, 0])
    assert tokenizer(["a toucan ,"])[0].tolist()[:5] == [1, a, toucan, comma, 2]
    assert tokenizer(["a cat"])[0].tolist()[:4] == [1, a, 3, 2]  # a cat occurs once
    digits = tokenizer(["23"])[0].tolist()
    assert len(set(digits[1:3])) == 2
    assert 3 not in digits


def test_a_long_text_is_cut_and_still_ends(tmp_path: Path) -> None:
    assert make(tmp_path / "t", TEXTS)(["a " * 20])[0].tolist()[-1] == 2


def test_the_vocabulary_does_not_depend_on_the_order_of_texts(tmp_path: Path) -> None:
    one, other = make(tmp_path / "a", TEXTS), make(tmp_path / "b", TEXTS[::-1])
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_the_vocabulary_is_cut_to_the_most_frequent(tmp_path: Path) -> None:
    vocabulary = make(tmp_path / "t", TEXTS, vocabulary=7, min_count=1).tokenizer.get_vocab()
    assert sorted(vocabulary, key=vocabulary.get)[4:] == ["a", ".", "2"]
