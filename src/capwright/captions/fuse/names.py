"""How proper names are spelled in the sources, and whether a caption keeps them.

Reads: texts. Writes nothing.

A word with a capital inside a sentence is a name, and has to stand in a source just so; several in
a row have to stand so in a row ("John Smith" and "Mary Jones" give no "John Jones"). A source whose
letters are all small or all capital says nothing of spelling, so any capitals are right for its
words. Where a source in sentences writes a word with a capital and none without, a caption must as
well; a title ("Beautiful Sunset Over The Sea") shows no such thing, as it capitalises everything.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from capwright.captions.fuse.words import ALLOWED

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


class Word(NamedTuple):
    """A word of a text, where it begins a sentence, and whether only a space is before it."""

    text: str
    first: bool
    joined: bool


class Spelling:
    """What the sources say of the spelling of names."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = [_words(source) for source in sources]
        self.written: set[str] = set()
        self.free: set[str] = set()  # in a source without both cases
        names: set[str] = set()
        for text, words in zip(sources, self.sources, strict=True):
            self.written |= {word.text for word in words}
            if text == text.lower() or text == text.upper():
                self.free |= {word.text.lower() for word in words}
            elif not _is_title(words):
                names |= {w.text for w in words if not w.first and w.text[0].isupper()}
        self.names = {name.lower() for name in names if name.lower() not in self.written}
        self.lowered = {word.lower() for word in self.written}

    def keeps(self, answer: str) -> bool:
        """Whether every name in the answer is spelled and joined as a source does."""
        words = _words(answer)
        return all(map(self._spelled, words)) and all(map(self._in_a_row, self._rows(words)))

    def _spelled(self, word: Word) -> bool:
        text, low = word.text, word.text.lower()
        if text in self.written or low in self.free or low in ALLOWED or not text[0].isalpha():
            return True
        if word.first:
            uncapitalised = text[0].lower() + text[1:]
            return uncapitalised in self.written or low not in self.lowered
        if text == low:
            return low not in self.names
        # capitals that no source has; a word that no source has either is not a name's fault
        return False

    def _rows(self, words: Sequence[Word]) -> list[list[str]]:
        """Runs of two or more names with only spaces between them."""
        rows: list[list[str]] = [[]]
        for word in words:
            low = word.text.lower()
            named = word.text[0].isupper() and low not in ALLOWED
            if word.first and low not in self.names:
                named = False
            if not named or not word.joined:
                rows.append([])
            if named:
                rows[-1].append(low)
        return [row for row in rows if len(row) > 1]

    def _in_a_row(self, row: Sequence[str]) -> bool:
        size = len(row)
        for words in self.sources:
            texts = [word.text.lower() for word in words]
            if any(texts[at : at + size] == row for at in range(len(texts) - size + 1)):
                return True
        return False


def _words(text: str) -> list[Word]:
    found = []
    end = 0
    for match in _WORD.finditer(text):
        between = text[end : match.start()]
        word = match.group()
        if word.endswith("'s"):
            word = word[:-2]
        before = text[max(0, match.start() - 4) : match.start()].rstrip(" \"'“(")
        found.append(Word(word, not before or before[-1] in ".!?:", between == " "))
        end = match.end()
    return found


def _is_title(words: Sequence[Word]) -> bool:
    """Whether most words that could be small have a capital."""
    content = [w.text for w in words if w.text.lower() not in ALLOWED and w.text[0].isalpha()]
    capital = sum(text[0].isupper() for text in content)
    return capital > 0.6 * len(content)
