"""Long texts in windows that a text tower can take whole, so that no word is cut away.

Reads and writes nothing. A text that does not fit is cut after sentences, a sentence that does not
fit after clauses, a clause between words, and a word (a file name, a line of Chinese) anywhere;
neighbours are put together again as long as they fit.

A text's similarity to a picture is the mean over its windows, weighted by their tokens. Every token
then counts the same as in a text of one window, and a tail of three words does not count as much as
the sentence before it; the plain mean would let where the cut falls decide. The best window alone
would reward texts that say one true thing among ten false ones.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

CUTS = (
    re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？\n])"),  # after sentences
    re.compile(r"(?<=[,;:)—–])\s+|(?<=[、，；：])"),  # after clauses
    re.compile(r"\s+"),
)


class Window(NamedTuple):
    """A part of a text."""

    text: str
    weight: float
    """Share of the text's tokens; a text's windows sum to one."""


def windows(text: str, limit: int, count: Callable[[str], int]) -> list[Window]:
    """Cut a text into windows of at most `limit` tokens each, as `count` counts them."""
    # no tokenizer has more tokens than bytes
    if len(text.encode("utf-8", "replace")) <= limit or count(text) <= limit:
        return [Window(text, 1.0)]
    parts = [part for part in _packed([text], 0, limit, count) if part.strip()]
    sizes = [count(part) for part in parts]
    total = sum(sizes)
    if not total:
        return [Window(text, 1.0)]
    return [Window(part, size / total) for part, size in zip(parts, sizes, strict=True)]


def _packed(
    pieces: Sequence[str], level: int, limit: int, count: Callable[[str], int]
) -> list[str]:
    """The pieces in as few parts as fit; one that does not fit is cut at the next level."""
    parts: list[str] = []
    now = ""
    for piece in pieces:
        if count(now + piece) <= limit:
            now += piece
            continue
        parts.append(now)
        if count(piece) <= limit or len(piece) == 1:
            now = piece
        else:
            *whole, now = _packed(_cut(piece, level), level + 1, limit, count)
            parts += whole
    return [part for part in (*parts, now) if part]


def _cut(text: str, level: int) -> list[str]:
    """The pieces of a text at a level, with the white space after each."""
    if level >= len(CUTS):
        return [text[: len(text) // 2], text[len(text) // 2 :]]
    ends = [found.end() for found in CUTS[level].finditer(text)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]
