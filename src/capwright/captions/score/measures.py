"""Counts and shares of many texts at once: characters, words, repeated n-grams.

Reads and writes nothing. The texts of a batch are one array of code points; every measure is a few
passes over it, with no loop over texts. An n-gram's hash is a difference of two prefix sums,

    S[i] = c[0] b + c[1] b^2 + ... + c[i-1] b^i        h[i, j) = (S[j] - S[i]) b^-i     mod 2^64

(Rabin-Karp; b is odd, so it has an inverse), and equal hashes are found by sorting. A word's hash
is that of its lower-case letters without the marks around it, and is the same in every process.

Repetition is defined as in Gopher (arXiv 2112.11446) and the ROOTS corpus (arXiv 2303.03915): the
share of a text's n-grams that occur more than once in it; of characters' n-grams only the square
root of their number, the most frequent ones, count, since long texts repeat some by chance.

Shapes: T texts, N code points, W words, G n-grams, all texts in a row.
"""

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]

ALNUM, SPECIAL, GAP, NUMERIC = 1, 2, 4, 8
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 1 << 64)
LAST_ASSIGNED = 0x33480  # no letters are beyond, in Unicode 17
TEXT_BITS = 40  # a hash keeps 40 bits beside the number of its text
BATCH = 1 << (64 - TEXT_BITS)


@dataclass(frozen=True)
class Words:
    """The words of all texts, in order."""

    text_W: Ints
    """Which text each belongs to."""
    start_W: Ints
    """First code point, after the marks before it."""
    end_W: Ints
    """One past the last code point, before the marks after it."""
    letters_W: Ints
    """Letters in it; fewer than its length where there are marks or digits inside."""
    hash_W: Hashes
    """Of its lower-case letters."""


class Texts:
    """A batch of texts as one array of code points."""

    def __init__(self, texts: Sequence[str]) -> None:
        assert len(texts) < BATCH
        # the one letter whose lower case is longer than itself
        joined = "".join(texts).replace("İ", "I")
        self.count = len(texts)
        self.length_T: Ints = np.fromiter(map(len, texts), np.int64, len(texts))
        self.end_T: Ints = np.cumsum(self.length_T)
        self.begin_T: Ints = self.end_T - self.length_T
        self.codes_N = _codes(joined)
        self.lower_N = _codes(joined.lower())
        self.class_N = code_classes()[self.codes_N]

    @cached_property
    def text_N(self) -> Ints:
        """Which text each code point belongs to."""
        return np.repeat(np.arange(self.count), self.length_T)

    def share(self, kind: int) -> Floats:
        """Share of code points of a class (ALNUM or SPECIAL), 0 for an empty text."""
        hits_N = (self.class_N & kind) != 0
        before_N = np.concatenate([[0], np.cumsum(hits_N)])
        count_T = before_N[self.end_T] - before_N[self.begin_T]
        shares: Floats = count_T / np.maximum(self.length_T, 1)
        return shares

    @cached_property
    def words(self) -> Words:
        """Runs between white space that hold at least one letter, without the marks around."""
        gap_N = (self.class_N & GAP) != 0
        first_N = np.zeros(len(gap_N), np.bool_)
        first_N[1:] = gap_N[:-1]
        first_N[self.begin_T[self.length_T > 0]] = True
        run_N = np.cumsum(first_N)  # a new run begins after a gap and with a text
        inner = np.flatnonzero((self.class_N & SPECIAL) == 0)
        run = run_N[inner]
        first = np.flatnonzero(np.diff(run, prepend=-1))
        last = np.append(first[1:], len(inner))[: len(first)] - 1
        start_W, end_W = inner[first], inner[last] + 1
        prefix = Prefix(self.lower_N.astype(np.uint64) + np.uint64(1))
        hash_W = mixed(prefix.hashes(start_W, end_W))
        return Words(self.text_N[start_W], start_W, end_W, last - first + 1, hash_W)

    @cached_property
    def word_count_T(self) -> Ints:
        """Words of each text."""
        return np.bincount(self.words.text_W, minlength=self.count).astype(np.int64)

    def character_repetition(self, length: int = 10) -> Floats:
        """Share of n-grams of characters that the most frequent repeated ones make up."""
        count_T = np.maximum(self.length_T - length + 1, 0)
        start_G = starts(self.begin_T, count_T)
        prefix = Prefix(self.codes_N.astype(np.uint64) + np.uint64(1))
        text_G = np.repeat(np.arange(self.count), count_T)
        groups = _groups(text_G, prefix.hashes(start_G, start_G + length))
        distinct_T = np.bincount(groups.text, minlength=self.count)
        again = groups.size > 1
        text, size = groups.text[again], groups.size[again]
        order = np.lexsort((-size, text))
        text, size = text[order], size[order]
        rank = np.arange(len(text)) - np.searchsorted(text, text)
        counted = rank < np.sqrt(distinct_T[text]).astype(np.int64)
        repeated_T = np.bincount(text[counted], size[counted], minlength=self.count)
        return repeated_T / np.maximum(count_T, 1)

    def word_repetition(self, length: int = 5) -> Floats:
        """Share of n-grams of words that occur more than once."""
        count_T = np.maximum(self.word_count_T - length + 1, 0)
        start_G = starts(np.cumsum(self.word_count_T) - self.word_count_T, count_T)
        text_G = np.repeat(np.arange(self.count), count_T)
        hash_G = self.word_prefix.hashes(start_G, start_G + length)
        groups = _groups(text_G, mixed(hash_G))
        again = groups.size > 1
        repeated_T = np.bincount(groups.text[again], groups.size[again], minlength=self.count)
        return repeated_T / np.maximum(count_T, 1)

    @cached_property
    def word_prefix(self) -> "Prefix":
        """For hashes of runs of words."""
        return Prefix(self.words.hash_W)


class Prefix:
    """Prefix sums of a sequence, which give the hash of any part of it."""

    def __init__(self, values: Hashes) -> None:
        powers, _ = _powers(len(values))
        self.sums = np.zeros(len(values) + 1, np.uint64)
        np.cumsum(values * powers[: len(values)], out=self.sums[1:])

    def hashes(self, start: Ints, end: Ints) -> Hashes:
        """Hashes of the parts [start, end)."""
        _, inverses = _powers(len(self.sums))
        hashes: Hashes = (self.sums[end] - self.sums[start]) * inverses[start]
        return hashes


@dataclass(frozen=True)
class _Groups:
    """Equal n-grams of one text: which text, and how many."""

    text: Ints
    size: Ints


def mixed(hashes: Hashes) -> Hashes:
    """Spread a polynomial hash over all bits (the finaliser of splitmix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def word_hashes(words: Sequence[str]) -> Hashes:
    """The hashes that single words have in any text."""
    return Texts(words).words.hash_W


@cache
def code_classes() -> NDArray[np.uint8]:
    """Class bits of every code point: ALNUM, GAP and NUMERIC as the methods of `str` say; SPECIAL
    is what is neither letter nor mark of a letter (digits, punctuation, symbols, white space).
    """
    classes = np.full(sys.maxunicode + 1, SPECIAL, np.uint8)
    for code in range(LAST_ASSIGNED):
        character = chr(code)
        special = unicodedata.category(character)[0] not in "LM"
        bits = (SPECIAL if special else 0) | (GAP if character.isspace() else 0)
        bits |= NUMERIC if character.isnumeric() else 0
        classes[code] = bits | (ALNUM if character.isalnum() else 0)
    return classes


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def starts(first_T: Ints, count_T: Ints) -> Ints:
    """first, first + 1, ... for each text, `count` of them."""
    before_T = np.cumsum(count_T) - count_T
    found: Ints = np.arange(count_T.sum()) + np.repeat(first_T - before_T, count_T)
    return found


def _groups(text_G: Ints, hash_G: Hashes) -> _Groups:
    """Count equal hashes of a text; 40 bits of a hash make a false match in 10,000 n-grams of one
    text as likely as one in 20,000.
    """
    bits = np.uint64(TEXT_BITS)
    key_G = (text_G.astype(np.uint64) << bits) | (hash_G >> np.uint64(64 - TEXT_BITS))
    key_G.sort()
    first = np.flatnonzero(np.concatenate([[True], key_G[1:] != key_G[:-1]])[: len(key_G)])
    size = np.diff(np.concatenate([first, [len(key_G)]]))
    return _Groups((key_G[first] >> bits).astype(np.int64), size)


_tables: list[tuple[Hashes, Hashes]] = []


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """b, b^2, ... and 1, b^-1, b^-2, ..., at least `count` of each; grown when needed."""
    if not _tables or len(_tables[0][0]) < count:
        size = max(count, 1 << 16)
        powers: Hashes = np.cumprod(np.full(size, BASE, np.uint64), dtype=np.uint64)
        inverses: Hashes = np.cumprod(np.full(size, INVERSE, np.uint64), dtype=np.uint64)
        _tables[:] = [(powers, np.append(np.uint64(1), inverses[:-1]))]
    return _tables[0]
