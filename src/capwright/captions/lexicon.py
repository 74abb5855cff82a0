"""Names of things that a corpus talks about, found in its own words and in WordNet's.

Reads: texts; for a whole corpus (`corpus_lexicon`) the index and WordNet's lemmas that timm ships.
Writes: WORK/models/lexicon/DIGEST.json, so that other processes load what one has built.

A candidate is what follows a determiner ("a", "two", "another", ...) or "of" up to the next
function word or mark. People's captions are trusted and name things in sentences, so the end of a
candidate is cut until the web's alt text uses it too ("bull stands" → "bull"; "plain wall" →
nothing). What the alt text says so often enough counts without a person. A word before "of" is a
measure ("a pair of") and no name.

WordNet adds names that a sample of the corpus is too small to show (`wordnet_lemmas`). Of its
things, places, animals, plants and food are taken, not persons (most are invisible and many are
slurs) and nothing abstract. A lemma of several words is exact enough to count wherever it is said;
one of a single word ("can", "blue", "matter") counts only where the corpus itself uses the word as
a noun: at the end of what follows a determiner, twice or more, and not mostly before another noun.

`Lexicon.find` matches whole words by Aho-Corasick, the first name first and the longest of those
that start there, so that what is said stays specific: "Tamworth pig" is not also a "pig".
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from capwright.captions.human import human_captions
from capwright.captions.runner import stage_folder
from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError
from capwright.core.files import read_json, write_json
from capwright.corpus.index import corpus_digest, load_shard, shard_sizes
from capwright.corpus.sidecars import has_sidecar, read_sidecars

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
# What a text says of itself; a name that ends so is taken from people alone.
PICTURE_WORDS = frozenset(
    ["photo", "photograph", "picture", "image", "wallpaper", "thumbnail", "screenshot", "gallery"]
)
# Offsets in WordNet 3.0: animals and artifacts, food, places, natural objects, weather and plants.
_VISIBLE = (
    (1_313_000, 4_620_000),
    (7_550_000, 7_940_000),
    (8_492_000, 8_680_000),
    (9_186_000, 9_500_000),
    (11_440_000, 13_220_000),
)


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

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[type["Lexicon"], tuple[tuple[str, ...]]]:
        return Lexicon, (self.names,)  # the automaton is quicker built than sent

    def find(self, words: Sequence[str]) -> list[Span]:
        """Names in `words`, the longest first at each place, without overlap; plurals allowed."""
        if not self.names or not words:
            return []
        keys = [_key(word.lower()) for word in words]
        ends = {at: n for n, at in enumerate(itertools.accumulate(map(len, keys)), 1)}
        found = [
            Span(ends[last + 1] - length, ends[last + 1], name)
            for last, (length, name) in self._automaton.iter("".join(keys))
        ]
        found.sort(key=lambda span: (span.start, -span.end))
        spans: list[Span] = []
        for span in found:
            if not spans or span.start >= spans[-1].end:
                spans.append(span)
        return spans

    def names_in(self, text: str) -> list[str]:
        """The different names in a text, in order."""
        return list(dict.fromkeys(span.name for span in self.find(split_words(text))))

    @cached_property
    def _automaton(self) -> Any:
        """Matches names and their plurals, each word between marks of its own.

        (`iter_long` would do the choosing, but pyahocorasick 2.3.1 overlooks some matches.)
        """
        import ahocorasick

        automaton = ahocorasick.Automaton()
        split = {name: split_words(name) for name in self.names}
        for name, words in split.items():
            for plural in _plurals(words[-1]):
                automaton.add_word("".join(map(_key, [*words[:-1], plural])), (len(words), name))
        for name, words in split.items():  # a name of its own before another one's plural
            automaton.add_word("".join(map(_key, words)), (len(words), name))
        automaton.make_automaton()
        return automaton


@dataclass(frozen=True, kw_only=True)
class LexiconConfig:
    """Which names a corpus's lexicon holds."""

    wordnet: bool | None = None
    """Whether WordNet's things, places, animals, plants and food are added; null lets the stage
    choose."""
    min_web_count: int = 4
    """Alt text alone must say a name so often after a determiner."""
    sample: int = 200_000
    """Texts that are read, from shards spread evenly over the corpus."""

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise CapwrightError(f"sample is {self.sample}, but must be at least 1 text")


def corpus_lexicon(
    work: Path, describe_stage: str, human_field: str, config: LexiconConfig
) -> Lexicon:
    """The lexicon of the corpus in `work`, built from a sample of it where it is not saved yet.

    Where no one wrote captions, those of `describe_stage` are the sentences that name things.
    """
    sources = [as_dict(config), describe_stage, _plan_digest(stage_folder(work, describe_stage))]
    name = digest([*sources, human_field, corpus_digest(work)])
    path = work / "models" / "lexicon" / f"{name}.json"
    if not path.exists():
        human, web, described = _sample(work, describe_stage, human_field, config.sample)
        lemmas = wordnet_lemmas() if config.wordnet else ()
        built = build_lexicon(
            human or described, web, min_web_count=config.min_web_count, lemmas=lemmas
        )
        write_json(path, {"names": built.names})
    return Lexicon(tuple(read_json(path)["names"]))


def build_lexicon(
    human: Iterable[str],
    web: Iterable[str],
    *,
    min_web_count: int = 4,
    min_support: int = 2,
    lemmas: Iterable[str] = (),
) -> Lexicon:
    """Names from people's captions (used at least `min_support` times in the web's text too), from
    alt text alone (there at least `min_web_count` times after a determiner) and from `lemmas`.

    Both texts are read once, so they may be streams.
    """
    nouns = _NounUse()
    named = Counter(phrase for text in human for phrase in nouns.phrases(_lower_words(text)))
    uses = dict.fromkeys((p[:end] for p in named for end in range(1, len(p) + 1)), 0)
    led: Counter[tuple[str, ...]] = Counter()
    for text in web:
        words = _lower_words(text)
        led.update(nouns.phrases(words))
        for gram in _grams(words):
            if gram in uses:
                uses[gram] += 1
    names = {
        " ".join(phrase)
        for phrase, count in led.items()
        if count >= min_web_count and phrase[-1] not in PICTURE_WORDS
    }
    for phrase in named:
        while phrase and uses[phrase] < min_support:
            phrase = phrase[:-1]
        if phrase:
            names.add(" ".join(phrase))
    names.update(lemma for lemma in lemmas if " " in lemma or nouns.is_noun(lemma))
    return Lexicon(tuple(sorted(names)))


def wordnet_lemmas() -> list[str]:
    """Lemmas in lower case of WordNet's visible things, without persons; see the module's text."""
    timm = find_spec("timm")
    assert timm and timm.origin
    table = Path(timm.origin).parent / "data" / "_info" / "imagenet_synset_to_lemma.txt"
    found = set()
    for line in table.read_text(encoding="utf-8").splitlines():
        synset, _, lemmas = line.partition("\t")
        if not any(start <= int(synset[1:]) < stop for start, stop in _VISIBLE):
            continue
        for lemma in lemmas.lower().split(", "):
            words = split_words(lemma)
            longest = max(map(len, words), default=0)
            if longest > 2 and words[-1] not in PICTURE_WORDS and words[0] != "genus":
                found.add(" ".join(words))
    return sorted(found)


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


class _NounUse:
    """Counts how each word is used in the phrases after determiners."""

    def __init__(self) -> None:
        self.nouns: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def phrases(self, words: Sequence[str]) -> list[tuple[str, ...]]:
        """The phrases of a text, which are counted."""
        found = _phrases(words)
        for phrase in found:
            for word, after in itertools.zip_longest(phrase, phrase[1:], fillvalue=""):
                noun = not after or after.endswith(("ing", "ed"))  # "a dog running"
                (self.nouns if noun else self.others)[word] += 1
        return found

    def is_noun(self, word: str) -> bool:
        """Whether the word ends phrases twice or more, and in a third of its uses."""
        forms = (word, *_plurals(word))
        nouns = sum(self.nouns[form] for form in forms)
        return nouns >= 2 and 3 * nouns >= nouns + sum(self.others[form] for form in forms)


def _lower_words(text: str) -> list[str]:
    return [word.lower() for word in split_words(text)]


def _grams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for start in range(len(words)):
        for end in range(start + 1, min(start + MAX_WORDS, len(words)) + 1):
            yield tuple(words[start:end])


def _key(word: str) -> str:
    """A word between marks of its own, so that matches begin and end with words."""
    return f" {word}\n"


def _plurals(word: str) -> list[str]:
    """Regular plurals that a noun may have."""
    plurals = [f"{word}s"]
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        plurals.append(f"{word}es")
    if word.endswith("y") and word[-2:-1] not in ("a", "e", "o", "u"):
        plurals.append(f"{word[:-1]}ies")
    return plurals


def _plan_digest(folder: Path) -> str:
    """What the stage in `folder` was made with, or "" where it does not say."""
    manifest = folder / "manifest.json"
    return str(read_json(manifest)["digest"]) if manifest.exists() else ""


def _sample(
    work: Path, describe_stage: str, human_field: str, texts: int
) -> tuple[list[str], list[str], list[str]]:
    """Captions by people, alt texts and descriptions of shards spread over the corpus."""
    sizes = shard_sizes(work)
    shards, pictures = list(sizes), max(1, sum(sizes.values()))
    wanted = max(1, min(len(shards), round(texts * len(shards) / pictures)))
    each = pictures if texts >= pictures else math.ceil(texts / wanted)
    human: list[str] = []
    web: list[str] = []
    described: list[str] = []
    folder = stage_folder(work, describe_stage)
    for number in range(wanted):
        shard = shards[number * len(shards) // wanted]
        table = load_shard(work, shard, ["text", "json"]).slice(0, each)
        human += [text for text in human_captions(table, human_field) if text]
        web += table["text"].to_pylist()
        if not human and has_sidecar(folder, shard):
            captions = read_sidecars(folder, [shard], ["text", "keep"])
            described += captions.filter(captions["keep"])["text"].to_pylist()[:each]
    return human, web, described
