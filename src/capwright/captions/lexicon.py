"""Names of things that a corpus talks about, found in its own words.

Reads: texts. Writes nothing.

A candidate is what follows a determiner ("a", "two", "another", ...) or "of" up to the next
function word or mark. People's captions are trusted and name things in sentences, so the end of a
candidate is cut until the web's alt text uses it too ("bull stands" → "bull"; "plain wall" →
nothing). What the alt text says so often enough counts without a person. A word before "of" is a
measure ("a pair of") and no name. `Lexicon.find` matches whole words, the longest name first, so
that what is said stays specific: "Tamworth pig" is not also a "pig".
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_WORDS = 5
WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W_]+|\d+)*(?:-\d+)?|\d+|[^\w\s]|_")

DETERMINERS = frozenset(
    ["a", "an", "another", "one", "two", "three", "four", "five", "several", "some", "many", "the"]
)
_FUNCTION_WORDS = """
of in on at by with from to for into onto over under before behind beside between above below near
around across through along against next front and or but nor so as than then that this these those
which who whose it its they their he his she her we our you your i my is are was were be been being
has have had do does did does not no there here where when while up down out off also very left
right middle other
"""
FUNCTION_WORDS = DETERMINERS | frozenset(_FUNCTION_WORDS.split())


class Span(NamedTuple):
    """A name found in a text's words: `words[start:end]` is `name`."""

    start: int
    end: int
    name: str


def split_words(text: str) -> list[str]:
    """Words, numbers and marks of a text, as written; `_` ends a word."""
    return WORD.findall(text.replace("’", "'"))


@dataclass(frozen=True)
class Lexicon:
    """Names in lower case, sorted; their order numbers them."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        table = {tuple(split_words(name)): name for name in self.names}
        object.__setattr__(self, "_table", table)
        object.__setattr__(self, "_longest", max((len(words) for words in table), default=0))

    def __len__(self) -> int:
        return len(self.names)

    def find(self, words: Sequence[str]) -> list[Span]:
        """Names in `words`, the longest first at each place, without overlap; plural s allowed."""
        table: dict[tuple[str, ...], str] = self.__dict__["_table"]
        lowered = [word.lower() for word in words]
        spans: list[Span] = []
        at = 0
        while at < len(lowered):
            for length in range(min(self.__dict__["_longest"], len(lowered) - at), 0, -1):
                piece = tuple(lowered[at : at + length])
                name = table.get(piece) or table.get((*piece[:-1], piece[-1].removesuffix("s")))
                if name is not None:
                    spans.append(Span(at, at + length, name))
                    at += length
                    break
            else:
                at += 1
        return spans

    def names_in(self, text: str) -> list[str]:
        """The different names in a text, in order."""
        return list(dict.fromkeys(span.name for span in self.find(split_words(text))))


def build_lexicon(
    human: Iterable[str], web: Iterable[str], *, min_web_count: int = 4, min_support: int = 2
) -> Lexicon:
    """Names from people's captions (used at least `min_support` times in the web's text too) and
    from alt text alone (there at least `min_web_count` times after a determiner)."""
    web_words = [[word.lower() for word in split_words(text)] for text in web]
    uses = Counter(gram for words in web_words for gram in _grams(words))
    led = Counter(phrase for words in web_words for phrase in _phrases(words))
    names = {" ".join(phrase) for phrase, count in led.items() if count >= min_web_count}
    for text in human:
        for phrase in _phrases([word.lower() for word in split_words(text)]):
            while phrase and uses[phrase] < min_support:
                phrase = phrase[:-1]
            if phrase:
                names.add(" ".join(phrase))
    return Lexicon(tuple(sorted(names)))


def is_word(word: str) -> bool:
    """Whether a piece of `split_words` is a word rather than a number or a mark."""
    return word[0].isalpha()


def _phrases(words: Sequence[str]) -> list[tuple[str, ...]]:
    found = []
    for at, word in enumerate(words):
        if word not in DETERMINERS and word != "of":
            continue
        end = at + 1
        while end < len(words) and is_word(words[end]) and words[end] not in FUNCTION_WORDS:
            end += 1
        measure = end < len(words) and words[end] == "of"
        if at + 1 < end <= at + 1 + MAX_WORDS and not measure:
            found.append(tuple(words[at + 1 : end]))
    return found


def _grams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        tuple(words[at : at + length])
        for length in range(1, MAX_WORDS + 1)
        for at in range(len(words) - length + 1)
    ]
