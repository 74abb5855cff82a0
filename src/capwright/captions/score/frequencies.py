"""In how many pictures of the corpus a word or a long phrase occurs; from it, how specific a text
is and how much of it is boilerplate.

Reads: the index and the captions that are scored, one pass, a sample where the corpus is large.
Writes: WORK/models/text-frequencies/frequencies.npz, so that every process that scores reads the
same numbers, and manifest.json.

A picture is a document with all its candidates; words and phrases are 64-bit hashes
(`measures.py`). With P pictures and d those that hold a word, its surprise is log2((P + 1) / d)
bits, and a word that the sample does not hold has d = 1.

Specificity, 0..1: (m + n) / 2 in units of the largest surprise, where m is the mean surprise of the
text's different content words, and n that of its longest name: the run of content words without a
mark between them whose surprises add up to most, at most one picture's worth. So "Tamworth pig" is
more specific than "pig", and "pig" more than "animal".

Boilerplate, 0..1: the share of a text's words in phrases of five words (a shorter text is one
phrase) that occur in many pictures and hold at least 80% of the uses of their rarest word. "click
to enlarge image" is found nowhere but in itself, while the words of "a photo of a cat" are
everywhere.

Shapes: T texts, W words, G phrases, P pictures.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capwright.captions.lexicon import FUNCTION_WORDS
from capwright.captions.score.measures import (
    Floats,
    Hashes,
    Ints,
    Texts,
    mixed,
    starts,
    word_hashes,
)
from capwright.core.files import atomic_path

PHRASE = 5  # words
OWN_USES = 0.8  # of the rarest word's pictures that a phrase of boilerplate has
MERGE_AT = 1 << 22  # hashes that are kept before they are counted
FILE = "frequencies.npz"


@dataclass(frozen=True)
class Counts:
    """Sorted hashes and the pictures that hold each."""

    hashes: Hashes
    pictures: Ints

    def look_up(self, wanted: Hashes) -> Ints:
        """Pictures of each wanted hash, 0 where it is not known."""
        if not len(self.hashes):
            return np.zeros(len(wanted), np.int64)
        at = np.searchsorted(self.hashes, wanted).clip(max=len(self.hashes) - 1)
        found: Ints = np.where(self.hashes[at] == wanted, self.pictures[at], 0)
        return found


@dataclass(frozen=True)
class Frequencies:
    """What a corpus says how often."""

    pictures: int
    """Pictures that were counted."""
    words: Counts
    phrases: Counts

    def word_pictures(self, batch: Texts) -> Ints:
        """Pictures of each word of the texts, at least 1."""
        return np.maximum(self.words.look_up(batch.words.hash_W), 1)

    def specificity(self, batch: Texts) -> Floats:
        """Of each text, see the module's docstring; 0 without content words."""
        words, most = batch.words, np.log2(self.pictures + 1)
        content = np.flatnonzero(_content(batch))
        if not len(content) or most == 0:
            return np.zeros(batch.count)
        text, hashes = words.text_W[content], words.hash_W[content]
        surprise = np.log2((self.pictures + 1) / self.word_pictures(batch)[content])
        # a word that is not the neighbour of the one before begins a name
        apart = words.start_W[content][1:] - words.end_W[content][:-1] != 1
        begins = np.flatnonzero(np.concatenate([[True], apart | (np.diff(text) > 0)]))
        names = np.minimum(np.add.reduceat(surprise, begins), most)
        longest_T = np.zeros(batch.count)
        np.maximum.at(longest_T, text[begins], names)
        new = _first_in_text(text, hashes)
        count_T = np.bincount(text[new], minlength=batch.count)
        mean_T = np.bincount(text[new], surprise[new], batch.count) / np.maximum(count_T, 1)
        bounded: Floats = ((mean_T + longest_T) / (2 * most)).clip(0, 1)
        return bounded

    def boilerplate(self, batch: Texts) -> Floats:
        """Of each text, see the module's docstring."""
        start_G, length_G, hash_G = phrases(batch)
        uses_G = self.phrases.look_up(hash_G)
        hit = np.flatnonzero(uses_G)
        start, length = start_G[hit], length_G[hit]
        edges = np.stack([start, start + length], 1).ravel()
        pictures_W = np.append(self.word_pictures(batch), 0)  # reduceat needs an end
        rarest = np.minimum.reduceat(pictures_W, edges)[::2] if len(hit) else uses_G[hit]
        own = uses_G[hit] >= OWN_USES * rarest
        covered_W = np.zeros(len(batch.words.text_W) + 1, np.int64)
        np.add.at(covered_W, start[own], 1)
        np.add.at(covered_W, (start + length)[own], -1)
        inside = np.cumsum(covered_W)[:-1] > 0
        count_T = np.bincount(batch.words.text_W[inside], minlength=batch.count)
        shares: Floats = count_T / np.maximum(batch.word_count_T, 1)
        return shares


def count(documents: Iterable[Sequence[Sequence[str]]], min_pictures: int, min_share: float) -> Any:
    """Frequencies of the corpus; `documents` gives lists of pictures, each the list of its texts.

    Phrases count from `min_pictures` and `min_share` of the pictures up.
    """
    words, long_phrases, pictures = _Counter(), _Counter(), 0
    for chunk in documents:
        batch = Texts([text for texts in chunk for text in texts])
        picture_T = np.repeat(np.arange(len(chunk)), [len(texts) for texts in chunk])
        words.add(picture_T[batch.words.text_W], batch.words.hash_W)
        start_G, _, hash_G = phrases(batch)
        long_phrases.add(picture_T[batch.words.text_W[start_G]], hash_G)
        pictures += len(chunk)
    least = max(min_pictures, int(np.ceil(min_share * pictures)))
    return Frequencies(pictures, words.counts(2), long_phrases.counts(least))


def save(folder: Path, frequencies: Frequencies) -> None:
    """Write the counts, complete or not at all."""
    with atomic_path(folder / FILE) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            pictures=np.array(frequencies.pictures),
            words=frequencies.words.hashes,
            word_pictures=frequencies.words.pictures,
            phrases=frequencies.phrases.hashes,
            phrase_pictures=frequencies.phrases.pictures,
        )


def load(folder: Path) -> Frequencies:
    """The counts that `save` wrote."""
    with np.load(folder / FILE, allow_pickle=False) as saved:
        return Frequencies(
            int(saved["pictures"]),
            Counts(saved["words"], saved["word_pictures"]),
            Counts(saved["phrases"], saved["phrase_pictures"]),
        )


def phrases(batch: Texts) -> tuple[Ints, Ints, Hashes]:
    """First word, number of words and hash of every phrase of PHRASE words; a text of two words or
    more that is shorter is one phrase.
    """
    words_T = batch.word_count_T
    count_T = np.where(words_T >= PHRASE, words_T - PHRASE + 1, np.minimum(words_T // 2, 1))
    start_G = starts(np.cumsum(words_T) - words_T, count_T)
    length_G = np.repeat(np.minimum(words_T, PHRASE), count_T)
    return start_G, length_G, mixed(batch.word_prefix.hashes(start_G, start_G + length_G))


class _Counter:
    """Counts in how many pictures hashes occur, over chunks of pictures."""

    def __init__(self) -> None:
        self._parts: list[tuple[Hashes, Ints]] = []
        self._size = 0

    def add(self, picture: Ints, hashes: Hashes) -> None:
        """Hashes of some pictures; a picture's hashes come in one call."""
        once = hashes[_first_in_text(picture, hashes)]
        self._parts.append(_summed(once, np.ones(len(once), np.int64)))
        self._size += len(once)
        if self._size > MERGE_AT:
            self._merge()

    def counts(self, least: int) -> Counts:
        """The hashes that at least so many pictures hold."""
        self._merge()
        hashes, pictures = self._parts[0]
        return Counts(hashes[pictures >= least], pictures[pictures >= least])

    def _merge(self) -> None:
        empty: tuple[Hashes, Ints] = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
        hashes, pictures = zip(*(self._parts or [empty]), strict=True)
        self._parts = [_summed(np.concatenate(hashes), np.concatenate(pictures))]
        self._size = 0


def _summed(hashes: Hashes, pictures: Ints) -> tuple[Hashes, Ints]:
    """Sort, and add up what is equal."""
    order = np.argsort(hashes)
    hashes, pictures = hashes[order], pictures[order]
    first = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
    return hashes[first], np.add.reduceat(pictures, first) if len(first) else pictures


def _first_in_text(text: Ints, hashes: Hashes) -> NDArray[np.int64]:
    """Positions at which a hash occurs first in its text, sorted by text and hash."""
    order = np.lexsort((hashes, text))
    text, hashes = text[order], hashes[order]
    new = (np.diff(text, prepend=-1) != 0) | np.append(True, hashes[1:] != hashes[:-1])[: len(text)]
    found: NDArray[np.int64] = order[new]
    return found


def _content(batch: Texts) -> NDArray[np.bool_]:
    """Words that are no function words and hold no digits or marks."""
    function = np.sort(word_hashes(sorted(FUNCTION_WORDS)))
    at = np.searchsorted(function, batch.words.hash_W).clip(max=len(function) - 1)
    plain: NDArray[np.bool_] = function[at] != batch.words.hash_W
    return plain


def chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items; the last may be shorter."""
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
