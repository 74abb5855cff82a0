"""What a sample of a source's texts is like: lengths, junk, languages, concepts, diversity, truth.

Reads and writes nothing; every function takes texts and gives what goes into audit.json.

Diversity follows the distinct-n of Li et al. (arXiv 1510.03055): different n-grams of words over
all n-grams. Concept coverage counts the lexicon's names once a text; sorted by count, their long
tail is a straight line in a log-log plot where it is Zipf's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import chain, islice
from typing import Any

import numpy as np

from capwright.captions.lexicon import Lexicon, is_word, split_words
from capwright.captions.score.junk import junk_kinds
from capwright.captions.score.text import language_of
from capwright.captions.score.tokens import CONTEXT_TOKENS, count_tokens
from capwright.evaluate.named_objects import precision_recall

MOST_TOKENS = 100  # of a histogram; longer texts are in its last bin
LANGUAGE_TEXTS = 2000  # texts whose language is guessed, since that takes longest
TOP_NAMES = 20
ZIPF_POINTS = 60


def lengths(texts: Sequence[str]) -> dict[str, Any]:
    """Tokens as CLIP counts them: a histogram, and the share that its context of 77 cuts."""
    tokens = np.array(count_tokens(texts), np.int64)
    return {
        **histogram(tokens.tolist(), 0, MOST_TOKENS, 25),
        "mean": float(tokens.mean()) if len(tokens) else 0.0,
        "median": float(np.median(tokens)) if len(tokens) else 0.0,
        "longest": int(tokens.max(initial=0)),
        "cut_share": float((tokens > CONTEXT_TOKENS).mean()) if len(tokens) else 0.0,
    }


def kinds_of_junk(texts: Sequence[str]) -> dict[str, int]:
    """How many texts say nothing about any picture, by kind."""
    return dict(Counter(kind for kind in junk_kinds(texts) if kind).most_common())


def languages(texts: Sequence[str]) -> dict[str, int]:
    """How many of the first texts are in which language (ISO 639; "und": too short to say)."""
    return dict(Counter(language_of(text) for text in texts[:LANGUAGE_TEXTS]).most_common())


def diversity(texts: Sequence[str]) -> dict[str, Any]:
    """Different texts, words and n-grams among all."""
    words = [[w.lower() for w in split_words(text) if is_word(w)] for text in texts]
    found: dict[str, Any] = {"texts": len(texts), "distinct_texts": len(set(texts))}
    for n in (1, 2, 3):
        grams = chain.from_iterable(zip(*(w[i:] for i in range(n)), strict=False) for w in words)
        counts = Counter(grams)
        total = counts.total()
        found[f"distinct_{n}"] = len(counts) / total if total else 0.0
        if n == 1:
            found["words"], found["vocabulary"] = total, len(counts)
    return found


def concepts(texts: Sequence[str], lexicon: Lexicon) -> dict[str, Any]:
    """The names of the lexicon that the texts say: how many, which most, how long the tail is."""
    per_text = [lexicon.names_in(text) for text in texts]
    counts = Counter(chain.from_iterable(per_text))
    ranked = counts.most_common()
    return {
        "lexicon": len(lexicon),
        "named": len(ranked),
        "once": sum(count == 1 for _, count in ranked),
        "texts_with_a_name": sum(bool(names) for names in per_text),
        "names_a_text": len(list(chain.from_iterable(per_text))) / max(1, len(texts)),
        "top": [[name, count] for name, count in ranked[:TOP_NAMES]],
        "zipf": zipf([count for _, count in ranked]),
    }


def zipf(counts: Sequence[int]) -> list[list[int]]:
    """(rank, count), evenly spaced in log rank."""
    if not counts:
        return []
    ranks = np.unique(np.geomspace(1, len(counts), ZIPF_POINTS).round().astype(int))
    return [[int(rank), int(counts[rank - 1])] for rank in ranks]


def against_truth(
    texts: Sequence[str], truth: Sequence[Set[str]], lexicon: Set[str]
) -> dict[str, Any]:
    """Named objects against the true ones; what is named and not there is hallucinated."""
    found = precision_recall([[text] for text in texts], truth, lexicon)
    return {
        "pictures": len(texts),
        "precision": found.precision,
        "recall": found.recall,
        "f1": found.f1,
        "names": found.pairs,
        "hallucinated": 1 - found.precision if found.pairs else None,
    }


def histogram(values: Sequence[float], low: float, high: float, bins: int) -> dict[str, Any]:
    """Counts in equal bins; what lies outside is in the outermost."""
    edges = np.linspace(low, high, bins + 1)
    counts = np.histogram(np.clip(values, low, high), edges)[0]
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def top(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """The first `most` of a sorted count and the rest in one."""
    kept = dict(islice(counts.items(), most))
    rest = sum(counts.values()) - sum(kept.values())
    return kept | ({"others": rest} if rest else {})
