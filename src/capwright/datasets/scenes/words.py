"""Turns what people wrote beside a picture into noun phrases that a sentence can use.

Reads the first line of a cut-out's ``.txt`` and its file name; writes nothing.

Rules, in order: quotation marks and brackets go; the first sentence stays; an apposition
(", also called ...", ", from ...") and everything from the first verb on go. What then begins with
a determiner, or is a bare name of up to three words, is a noun phrase and gets the right article.
Everything else is chatty ("Eat your broccoli!") and the words of the file name stand in for it.
"""

import re

_ARTICLES = ("a", "an")
_PLURAL_DETERMINERS = ("two", "three", "four", "five", "some", "several", "many")
_DETERMINERS = (*_ARTICLES, *_PLURAL_DETERMINERS, "one", "the")
_VERBS = {
    "are", "be", "can", "carries", "does", "eats", "gets", "had", "has", "have", "is", "it's",
    "lives", "looks", "resembles", "used", "was", "were", "who", "which", "that", "will",
}  # fmt: skip
_TALK = {"eat", "don't", "give", "i", "it", "put", "remember", "see", "this", "these", "they", "we"}
_TALK |= {"you", "your", "my", "our"}
_MASS_NOUNS = {"broccoli", "corn", "lettuce", "garlic", "ginger", "grass", "rice", "water", "bread"}
_SINGULAR_ENDINGS = ("ss", "us", "is", "as", "os")
_MEASURES = re.compile(r"^(pair|bunch|head|string|glass|quarter|piece|plant|baby) of (an? )?", re.I)
_AFTER_THE_HEAD = re.compile(r" (covered|with|at|in|on|from|of|for|made|used) .*$", re.I)
_APPOSITION = re.compile(r",\s+(also|or|from|a|an|the|which|where|who|called)\b.*$", re.I)
_MAX_WORDS = 6


def noun_phrase(line: str, stem: str) -> str:
    """The phrase for a picture captioned `line` in a file called `stem` (no extension)."""
    text = re.sub(r"[“”\"]", "", line).replace("’", "'")
    text = re.sub(r"\([^)]*\)", " ", text)
    shouted = "!" in text or "?" in text
    text = re.split(r"[.!?](?:\s|$)", text, maxsplit=1)[0]
    text = _APPOSITION.sub("", text)
    words = text.split()
    verb = next((i for i, word in enumerate(words) if word.lower() in _VERBS), len(words))
    words = words[:verb]
    if not words or len(words) > _MAX_WORDS or {word.lower() for word in words} & _TALK:
        return _from_file_name(stem)
    if words[0].lower() in _DETERMINERS:
        if len(words) < 2:
            return _from_file_name(stem)
        return _with_article(words[0].lower(), words[1:])
    if len(words) <= 3 and not shouted and verb > len(words) - 1 and "the" not in words:
        return _bare([_lower_first(words[0]), *words[1:]])
    return _from_file_name(stem)


def head_name(phrase: str) -> str:
    """The thing itself: "a pair of pliers" is "pliers", "a birch at winter" is "birch"."""
    first, _, rest = phrase.partition(" ")
    name = rest if first in _DETERMINERS else phrase
    name = _MEASURES.sub("", name)
    return _AFTER_THE_HEAD.sub("", name) or name


def is_plural(phrase: str) -> bool:
    """Whether a verb after the phrase must be plural."""
    first = phrase.split()[0]
    return first in _PLURAL_DETERMINERS or (first not in _DETERMINERS and _plural_noun(phrase))


def article(word: str) -> str:
    """ "a" or "an", by the sound of the word that follows."""
    lower = word.lower()
    if re.match(r"(hour|honest|heir)", lower):
        return "an"
    if re.match(r"(uni|use|usu|uk\b|us\b|eu|one\b|ewe)", lower):
        return "a"
    if re.match(r"[FHLMNRSX](-|\d|[A-Z]|$)", word) and word.upper() == word:
        return "an"
    return "an" if lower[0] in "aeiou" else "a"


def _with_article(determiner: str, words: list[str]) -> str:
    if determiner in _ARTICLES:
        determiner = article(words[0])
    return " ".join([determiner, *words])


def _bare(words: list[str]) -> str:
    phrase = " ".join(words)
    if words[-1].lower() in _MASS_NOUNS or _plural_noun(phrase):
        return phrase
    return f"{article(words[0])} {phrase}"


def _from_file_name(stem: str) -> str:
    spaced = re.sub(r"[_\-]+", " ", re.sub(r"([a-z])([A-Z])", r"\1 \2", stem))
    words = [word.lower() for word in spaced.split() if not word.isdigit()]
    return _bare(words or ["thing"])


def _plural_noun(phrase: str) -> bool:
    last = phrase.split()[-1].lower()
    return last.endswith("s") and not last.endswith(_SINGULAR_ENDINGS)


def _lower_first(word: str) -> str:
    return word if any(letter.isupper() for letter in word[1:]) else word.lower()
