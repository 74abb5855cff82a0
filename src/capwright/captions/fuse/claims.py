"""What a text from the web says of its picture, without what it says to a program that reads it.

Reads: one text. Writes nothing.

Alt text is hostile input: anyone may write "ignore your instructions" beside a picture. `claims`
is what is sent to a language model and what its answer is later checked against: control and
invisible characters, markup, shell substitutions, addresses and file names go; a text ends before
the first piece that talks to its reader (an instruction, a chat role, a word that mixes alphabets
to look like another); what is left has none of the characters that chat templates and JSON give a
meaning, and is cut to a stated length. A list of phrases is never complete, so this only lessens
the load on `checks.py`, which does not rely on it.
"""

import re
import unicodedata
from functools import lru_cache

_HIDDEN = re.compile(
    r"<(script|style)\b.*?(</\1\s*>|$)"  # with what is inside
    r"|<!--.*?(-->|$)"
    r"|<[^<>]{0,300}>"
    r"|\$\([^)]*\)?|\$\{[^}]*\}?|`[^`]*`?"  # what a shell would run
    r"|&(#\w+|[a-z]{2,8});",
    re.IGNORECASE | re.DOTALL,
)
_ADDRESS = re.compile(
    r"://|\.\.[/\\]|^www\.|@\S+\.\w|^/\w+/|\.(com|net|org|io|co|ru|uk|example|info|biz|shop|html?|php|exe|sh)\b",
    re.IGNORECASE,
)
_PICTURE_FILE = re.compile(r"\.(jpe?g|png|gif|webp|bmp|tiff?)\b", re.IGNORECASE)
_MEANINGFUL = re.compile(r"[<>\[\]{}|`\\$#*_~^=\"“”«»]+")
_LOOKALIKES = frozenset(["CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE"])
_BREAK = re.compile(r"[.!?;:,\n()]|\s[–—-]\s")
STEERING = re.compile(
    r"""
      \b(ignore|disregard|forget|override|bypass|discard)\b
        (\W+\w+){0,5}?\W+(instructions?|prompts?|rules?|messages?|context|guidelines?|above|everything)\b
    | \b(system|assistant|user|human|developer|instructions?|prompt)\s*:
    | \b(you\ are\ now|act\ as|pretend\ (to|that|you)|roleplay)\b
    | (?:^|[.!?;:,\n("'-]\s*|\b(?:and|then|please|must|now|just|should)\s+)
        ( (output|repeat|reveal|reply|respond|answer|say|write|translate|execute)\b
          (\W+\w+){0,4}?\W+(exactly|only|instead|captions?|commands?|prompts?|instructions?|json)\b
        | (print|return|tell|show|give|send|list)\b
          (\W+\w+){0,4}?\W+(following|prompts?|instructions?|json|verbatim)\b )
    | \b(always|never)\ (answer|say|reply|write|output|mention)\b
    | \brole\W{1,6}(system|user|assistant)\b
    | \b(new|updated|real|additional|important)\ (instructions?|tasks?|rules?)\b
    | \b(end|close)\ of\ (the\ )?(alt|text|input|prompt|data|user)\b
    | \b(jailbreak|developer\ mode|system\ (prompt|message|override)|prompt\ injection)\b
    | \b(im_start|im_end|start_of_turn|end_of_turn|endoftext)\b | \[/?inst\] | <</?sys>> | \#\#\#
    | \b(ignorez|ignoriere|ignorieren|ignora|ignorar|oubliez|vergiss|olvida|negeer)\b
    | игнориру | забудь | 忽略 | 无视 | 無視 | 무시하
    """,
    re.IGNORECASE | re.VERBOSE,
)


def claims(text: str, characters: int = 400) -> str:
    """The part of `text` that can be about a picture, on one line, cut to so many characters."""
    plain = readable(text[: 10 * characters])
    plain = _HIDDEN.sub("\n", plain[: _steering_start(plain)])
    words = [word for word in plain.split() if not _ADDRESS.search(word)]
    plain = _MEANINGFUL.sub(" ", _PICTURE_FILE.sub(" ", " ".join(words)))
    return cut(" ".join(plain.split()), characters).strip(" ,;:-–—")


def steers(text: str) -> bool:
    """Whether a text talks to a program that reads it."""
    plain = readable(text[:4000])
    return _steering_start(plain) < len(plain)


def readable(text: str) -> str:
    """Compatible forms joined (NFKC), invisible and control characters gone, lines kept."""
    normal = unicodedata.normalize("NFKC", text)
    return "".join(
        " " if unicodedata.category(c) == "Zs" else c
        for c in normal
        if c in "\n\t" or unicodedata.category(c)[0] != "C"
    ).replace("’", "'")


def cut(text: str, characters: int) -> str:
    """The first so many characters, without a word that would be cut in two."""
    if len(text) <= characters:
        return text
    return text[: characters + 1].rpartition(" ")[0] or text[:characters]


def scripts(text: str) -> frozenset[str]:
    """The alphabets of a text's letters, as Unicode calls them ("LATIN", "CYRILLIC", "CJK")."""
    return frozenset(_script(c) for c in text if c.isalpha())


@lru_cache(maxsize=20_000)
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "UNKNOWN").split()[0].removesuffix("-COMPATIBILITY")
    return "CJK" if first in ("HIRAGANA", "KATAKANA") else first


def _steering_start(text: str) -> int:
    """Where the piece begins that first talks to its reader, or the text's length."""
    starts = [match.start() for match in [STEERING.search(text)] if match]
    for word in re.finditer(r"[^\W\d_]+", text):
        alphabets = frozenset() if word.group().isascii() else scripts(word.group())
        if "LATIN" in alphabets and alphabets & _LOOKALIKES:
            starts.append(word.start())
            break
    if not starts:
        return len(text)
    breaks = [match.end() for match in _BREAK.finditer(text, 0, min(starts))]
    return breaks[-1] if breaks else 0
