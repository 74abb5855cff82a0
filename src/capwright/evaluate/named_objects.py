"""Which objects a caption names, against the truth: micro precision and recall.

Reads: nothing; captions and truth come as text. The scenes' truth is in `KEY.boxes.json`, whose
fields `name` and `caption` name each object (`truth_of`).

Protocol `named-objects/v1`: names are found in the lower-cased caption as whole words with an
optional plural s, the longest name first, and the words of a found name are not used again, so that
"butterfly fish" is no butterfly. Several captions of one picture are pooled: a picture's named
objects are the union. Precision = right names / names, recall = right names / objects, over all
pictures; a picture without a named object counts in recall alone.
"""

import json
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

PROTOCOL = "named-objects/v1"


@dataclass(frozen=True, kw_only=True)
class NamedObjects:
    """Shares in 0..1; `pairs` counts the (picture, name) pairs that captions made."""

    precision: float
    recall: float
    f1: float
    pairs: int


def normal_name(caption: str) -> str:
    """A cut-out's caption as a name: lower case, without article, end mark and remarks.

    `"A peacock (a male peafowl)."` is `"peacock"`.
    """
    first = re.split(r"[.!?(,;:]", caption.lower().replace("’", "'"), maxsplit=1)[0]
    name = re.sub(r"^(?:an?|the|some)\s+", "", first.strip())
    return " ".join(re.findall(r"[^\W_]+(?:['\-][^\W_]+)*", name))


def truth_of(boxes_json: str | bytes, field: str = "name") -> set[str]:
    """The names of a scene's objects from the content of its `.boxes.json`."""
    return {normal_name(box[field]) for box in json.loads(boxes_json)} - {""}


class NameFinder:
    """Finds the names of a lexicon in captions, longest first."""

    def __init__(self, lexicon: Set[str]) -> None:
        longest_first = sorted(lexicon - {""}, key=lambda name: (-len(name), name))
        alternatives = "|".join(re.escape(name) for name in longest_first)
        self._pattern = re.compile(rf"(?<![\w-])({alternatives})(?:e?s)?(?![\w-])")
        self._empty = not longest_first

    def find(self, caption: str) -> set[str]:
        """The names in one caption."""
        if self._empty:
            return set()
        return set(self._pattern.findall(caption.lower().replace("’", "'")))


def precision_recall(
    captions: Sequence[Sequence[str]], truth: Sequence[Set[str]], lexicon: Set[str]
) -> NamedObjects:
    """Compare the names in each picture's captions with its true names; both lists are parallel."""
    finder = NameFinder(lexicon)
    right = named = true = 0
    for texts, objects in zip(captions, truth, strict=True):
        found = set().union(*(finder.find(text) for text in texts))
        right += len(found & objects)
        named += len(found)
        true += len(objects)
    precision = right / named if named else 0.0
    recall = right / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return NamedObjects(precision=precision, recall=recall, f1=f1, pairs=named)
