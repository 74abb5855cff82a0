"""Whether a fused caption says only what its sources say; no model takes part.

Reads: an answer and its two sources. Writes nothing. `clean` takes off what models wrap captions
in; `check` gives "" or the first of these reasons:

- form: "malformed" (other JSON than asked for), "empty", "too long", "markup", "address",
  "repeats itself";
- talk: "refusal", "chatter", "copied prompt", "copied instruction";
- language: "other script" than the description's, "other language" than the sources';
- truth: "changed number" (one that no source has), "changed name" (spelled, shortened or joined
  otherwise), "unsupported concept" (a word that is no function word and in no source, or a name of
  the lexicon whose words stand apart in them: "a polar landscape with a brown bear" is no "polar
  bear"), "description ignored" (little of it is left, or a sentence has none of it).

The description is trusted more than the alt text, which anyone may have written. What the alt text
says to its reader (`claims.py`), words of shops and web pages, and in another language than the
description's all but its capitalised words support nothing. So whoever writes alt text can at most
have nouns of his own beside the description's, as every alt text has. Both sources come as
`claims` leaves them.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from capwright.captions.fuse.claims import STEERING, readable, scripts
from capwright.captions.fuse.names import Spelling
from capwright.captions.fuse.words import ALLOWED, CLUTTER, NUMBER_WORDS, language, numbers, stem
from capwright.captions.lexicon import Lexicon, split_words
from capwright.core.errors import CapwrightError

LONGEST = 8000  # characters of an answer that are looked at
_TOO_OFTEN = ((3, 3), (5, 2))  # words in a row, and how often they may not be said
_TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_MARKUP = re.compile(r"[<>{}\[\]|`\\*#^~]|\$[({]|\.\./|&#?\w+;|_\w+_|\n")
_ADDRESS = re.compile(r"://|\bwww\.|\S@\S+\.\w|\b[\w-]{2,}\.[a-z]{2,6}\b(?!\.)", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|as an? (ai|assistant|language model)|language model)\b"
    r"|\bi(?:'m| am| was)? ?(?:cannot|can't|can not|won't|will not|unable|not able|do not|don't)\b"
    r"|\b(?:cannot|can't|unable to|not able to) "
    r"(?:assist|help|provide|fulfil|comply|create|generate|describe|see|view|determine|combine)",
    re.IGNORECASE,
)
_CHATTER = re.compile(
    r"^(sure|certainly|of course|okay|ok|great|absolutely|yes|no problem|thanks?|hello|hi)\b[,!.]"
    r"|\bhere(?:'s| is| are)\b.{0,40}\b(caption|description|sentence|result|answer|version|text)"
    r"|\b(alt[ -]text|caption|rewritten|json)\b"
    r"|\b(let me know|i hope|hope this|feel free|based on the (given|provided|description))\b"
    r"|\bi(?:'ve| have|'ll| will|'d)? (?:combined|fused|merged|rewrote|rewritten|used|wrote)\b"
    r"|^(note|explanation|reasoning|output|answer|final)\b ?:",
    re.IGNORECASE,
)
_WRAPPING = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok)[!.,:]\s*)?"
    r"(?:here(?:'s| is)\b[^:\n]{0,60}:\s*)?"
    r"(?:(?:the )?(?:final |fused |combined |new |rewritten )?(?:caption|answer|output)\s*:\s*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a caption may be and how much of the description it must keep."""

    max_words: int = 60
    """More words are too long."""
    description_share: float = 0.25
    """Share of the description's content words that have to come back."""
    prompt_words: int = 6
    """So many words in a row from the prompt, and not from a source, are copied."""

    def __post_init__(self) -> None:
        if not 0 <= self.description_share <= 1:
            raise CapwrightError(
                f"description_share is {self.description_share}, but must lie between 0 and 1"
            )
        for name in ("max_words", "prompt_words"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}, but must be at least 1")


def clean(answer: str) -> str:
    """The caption in a model's answer: a JSON object's "caption", without lead-in and quotes."""
    text = readable(answer[:LONGEST]).strip()
    text = re.sub(r"^```\w*\s*|\s*```$", "", text)
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if set(value) != {"caption"} or not isinstance(value["caption"], str):
            return text
        text = readable(value["caption"]).strip()
    text = _WRAPPING.sub("", text, count=1).strip()
    if len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("'", "'"), ("“", "”")):
        text = text[1:-1].strip()
    return re.sub(r"[ \t]+", " ", text)


def check(
    answer: str, alt: str, description: str, lexicon: Lexicon, limits: Limits, prompt: str = ""
) -> str:
    """Why the (cleaned) answer is no caption, or ""; see the module's docstring."""
    return (
        _bad_form(answer, (alt, description), limits)
        or _talk(answer, alt, description, limits, prompt)
        or _other_script(answer, description or alt)
        or _invented(answer, alt, description, lexicon)
        or _ignored(answer, description, limits)
    )


def _bad_form(answer: str, sources: Sequence[str], limits: Limits) -> str:
    words = _tokens(answer)
    if answer.startswith("{"):
        return "malformed"
    if not any(word[0].isalpha() for word in words):
        return "empty"
    if len(words) > limits.max_words or len(answer) > 12 * limits.max_words:
        return "too long"
    if _MARKUP.search(answer):
        return "markup"
    if _ADDRESS.search(answer):
        return "address"
    if _repeats(words) and not any(_repeats(_tokens(source)) for source in sources):
        return "repeats itself"
    return ""


def _repeats(words: Sequence[str]) -> bool:
    """A word twice in a row, five words twice or three words three times."""
    if any(a.lower() == b.lower() for a, b in itertools.pairwise(words)):
        return True
    return any(max(_runs(words, size).values(), default=0) >= often for size, often in _TOO_OFTEN)


def _talk(answer: str, alt: str, description: str, limits: Limits, prompt: str) -> str:
    if _REFUSAL.search(answer):
        return "refusal"
    if (found := _CHATTER.search(answer)) and found.group().lower() not in description.lower():
        return "chatter"
    if prompt and _shares(answer, prompt, limits.prompt_words, f"{alt} {description}"):
        return "copied prompt"
    return "copied instruction" if STEERING.search(answer) else ""


def _shares(answer: str, prompt: str, size: int, sources: str) -> bool:
    """Whether so many words in a row are in the prompt as well, and not in the sources."""
    shared = _prompt_runs(prompt, size) & _runs(_tokens(answer), size).keys()
    return not shared <= _runs(_tokens(sources), size).keys()


@lru_cache(maxsize=8)
def _prompt_runs(prompt: str, size: int) -> frozenset[tuple[str, ...]]:
    return frozenset(_runs(_tokens(prompt), size))


def _runs(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    """How often so many words stand in a row."""
    lowered = [word.lower() for word in words]
    return Counter(zip(*(lowered[at:] for at in range(size)), strict=False))


def _other_script(answer: str, description: str) -> str:
    return "" if scripts(answer) <= scripts(description) else "other script"


def _invented(answer: str, alt: str, description: str, lexicon: Lexicon) -> str:
    heard = {stem(word) for word in _content(description)}
    strange = [word for word in _content(answer) if stem(word) not in heard]
    if strange:
        heard = {stem(word) for word in _supporting(alt, description)}
        strange = [word for word in strange if stem(word) not in heard]
    if len(strange) > 2 and language(answer) not in ("", language(alt), language(description)):
        return "other language"
    if not numbers(answer) <= _known_numbers(f"{alt} {description}"):
        return "changed number"
    if not Spelling((alt, description)).keeps(answer):
        return "changed name"
    if strange or not _named(answer, alt, description, lexicon):
        return "unsupported concept"
    return ""


def _known_numbers(sources: str) -> set[str]:
    known = numbers(sources)
    return known | {"1"} if re.search(r"\b(an?|another)\b", sources, re.IGNORECASE) else known


def _supporting(alt: str, description: str) -> list[str]:
    """Words of the alt text that a caption may use."""
    words = [word for word in _content(alt, lower=False) if word.lower() not in CLUTTER]
    spoken = language(alt)
    foreign = spoken and language(description) not in ("", spoken)
    return [word for word in words if not foreign or word[0].isupper()]


def _named(answer: str, alt: str, description: str, lexicon: Lexicon) -> bool:
    """Whether every name of several words is one in a source, or a name of the description made
    exact by words of the alt text."""
    told = [_stems(alt), _stems(description)]
    for name in lexicon.names_in(answer):
        words = _stems(name)
        if len(words) < 2 or any(_within(words, source) for source in told):
            continue
        if not (_within(words[:-1], told[0]) and words[-1] in told[1]):
            return False
    return True


def _ignored(answer: str, description: str, limits: Limits) -> str:
    told = {stem(word) for word in _content(description)}
    sentences = [{stem(w) for w in _content(part)} for part in re.split(r"[.!?;:]\s", answer)]
    kept = told.intersection(set().union(*sentences))
    alone = any(said and told.isdisjoint(said) for said in sentences)
    little = len(kept) < limits.description_share * len(told)
    return "description ignored" if told and (alone or little) else ""


def _stems(text: str) -> list[str]:
    return [stem(word) for word in split_words(text) if word[0].isalnum()]


def _within(words: Sequence[str], source: Sequence[str]) -> bool:
    size = len(words)
    return any(source[at : at + size] == words for at in range(len(source) - size + 1))


def _content(text: str, lower: bool = True) -> list[str]:
    """Words that are neither function words nor numbers; joined ones count one by one."""
    words = [part for token in _tokens(text) for part in token.removesuffix("'s").split("-")]
    return [
        word.lower() if lower else word
        for word in words
        if word[:1].isalpha() and word.lower() not in ALLOWED and word.lower() not in NUMBER_WORDS
    ]


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)
