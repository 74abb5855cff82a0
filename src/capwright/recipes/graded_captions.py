"""Captions of the scenes that get worse by known amounts and in different ways.

Reads: the oracle's descriptions, the alt text and the true things of each scene. Writes nothing;
`degrade` gives one list of texts. What is drawn depends on the seed and the corpus's name alone.

The ways are those of the web and of captioners: text of another picture, text that says nothing,
things left out, wrong names, no text at all.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from capwright.captions.score.junk import junk_kinds
from capwright.core.config import digest


@dataclass(frozen=True, kw_only=True)
class SceneTexts:
    """What is known about the scenes, parallel."""

    oracle: Sequence[str]
    alt: Sequence[str]
    things: Sequence[Sequence[tuple[str, str]]]
    """(name, caption) of every thing, as `boxes.json` has them."""


Rng = np.random.Generator
Way = Callable[[SceneTexts, Rng], list[str]]


def things_of(boxes_json: bytes) -> list[tuple[str, str]]:
    """(name, caption) of the things of a scene."""
    return [(box["name"], box["caption"]) for box in json.loads(boxes_json)]


def degrade(texts: SceneTexts, corpus: str, seed: int) -> list[str]:
    """The captions of one of CORPORA; "" is a picture without one."""
    rng = np.random.default_rng([seed, int(digest(corpus), 16)])
    return CORPORA[corpus](texts, rng)


def swapped(share: float) -> Way:
    """This share of the pictures has the description of another one."""

    def way(texts: SceneTexts, rng: Rng) -> list[str]:
        found = list(texts.oracle)
        rows = _rows(len(found), share, rng)
        for row, other in zip(rows, rows[-1:] + rows[:-1], strict=True):
            found[row] = texts.oracle[other]
        return found

    return way


def junk(share: float) -> Way:
    """This share has a file name, shop phrase or the like from the alt text."""

    def way(texts: SceneTexts, rng: Rng) -> list[str]:
        kinds = junk_kinds(texts.alt)
        pool = [text for text, kind in zip(texts.alt, kinds, strict=True) if text and kind]
        found = list(texts.oracle)
        for row in _rows(len(found), share, rng):
            found[row] = pool[int(rng.integers(len(pool)))]
        return found

    return way


def dropped(share: float) -> Way:
    """This share of the pictures has no caption."""

    def way(texts: SceneTexts, rng: Rng) -> list[str]:
        found = list(texts.oracle)
        for row in _rows(len(found), share, rng):
            found[row] = ""
        return found

    return way


def misnamed(share: float) -> Way:
    """This share of the things is called by the name of another thing."""

    def way(texts: SceneTexts, rng: Rng) -> list[str]:
        pool = sorted({thing for things in texts.things for thing in things})
        found = []
        for text, things in zip(texts.oracle, texts.things, strict=True):
            new = dict[str, str]()
            for name, caption in dict.fromkeys(things):
                other = pool[int(rng.integers(len(pool)))]
                if rng.random() < share:
                    new |= {caption.lower(): other[1], name.lower(): other[0]}
            found.append(_renamed(text, new))
        return found

    return way


def largest_alone(texts: SceneTexts, rng: Rng) -> list[str]:
    """Each description ends after the clause with its first thing, the largest."""
    found = []
    for text, things in zip(texts.oracle, texts.things, strict=True):
        clauses = re.split(r"(?<=[,;]) ", text.rstrip("."))
        names = [name.lower() for name, _ in things]
        last = next(
            (i for i, c in enumerate(clauses) if any(name in c.lower() for name in names)), 0
        )
        found.append(" ".join(clauses[: last + 1]).rstrip(",;") + ".")
    return found


CORPORA: dict[str, Way] = {
    "oracle": lambda texts, rng: list(texts.oracle),
    "swapped-25": swapped(0.25),
    "swapped-50": swapped(0.50),
    "swapped-75": swapped(0.75),
    "junk-50": junk(0.50),
    "misnamed-50": misnamed(0.50),
    "largest-alone": largest_alone,
    "dropped-75": dropped(0.75),
    "alt": lambda texts, rng: list(texts.alt),
}


def _rows(count: int, share: float, rng: Rng) -> list[int]:
    """Exactly this share of the rows, in random order."""
    picked: list[int] = rng.permutation(count)[: round(share * count)].tolist()
    return picked


def _renamed(text: str, new: dict[str, str]) -> str:
    if not new:
        return text
    longest_first = sorted(new, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    text = re.sub(
        rf"(?<![\w-])(?:{pattern})(?![\w-])",
        lambda match: new[match[0].lower()],
        text,
        flags=re.IGNORECASE,
    )
    return text[:1].upper() + text[1:]
