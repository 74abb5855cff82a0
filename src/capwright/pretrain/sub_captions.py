"""Some sentences of a long caption in its place, drawn anew at each epoch.

A long caption says many things, and a text tower of 77 tokens sees the first ones only. DreamLIP
(arXiv 2403.17007) and FLAIR (CVPR 2025) train on parts of it. Here a part is a run of sentences as
they stand: with n sentences its length is 1 .. min(n, most) with equal chance, then its start is
any of those that fit.
"""

import re

from capwright.pretrain.settings.sampling import Sampling

DRAWS = 3  # random numbers of one decision: whether, how many sentences, which
# where a sentence may end: a mark, closing quotes and a space; a CJK mark; the end of a line
_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+[\"”’）」』]*\s*|\s*\n\s*")
# a point after an initial or one of these belongs to the word
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Jr|Sr|vs|No|approx|ca|e\.g|i\.e|cf)\.\s+$"
)
_WORD = re.compile(r"\w")


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence; each has a word, and together they hold every word."""
    found: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        end = match.end()
        if _WORD.search(text, start, end) and not _ABBREVIATION.search(text[start:end]):
            found.append((start, end))
            start = end
    if _WORD.search(text, start):
        found.append((start, len(text)))
    elif found:
        found[-1] = (found[-1][0], len(text))
    return found


def shortened(text: str, draws: list[float], sampling: Sampling) -> str:
    """`text`, or some of its sentences; `draws` are DRAWS numbers in [0, 1)."""
    whether, length, place = draws
    if whether >= sampling.sub_caption or len(text.split()) <= sampling.sub_caption_over_words:
        return text
    found = sentences(text)
    if len(found) < 2:
        return text
    many = 1 + int(length * min(len(found), sampling.sub_caption_sentences))
    first = int(place * (len(found) - many + 1))
    return text[found[first][0] : found[first + many - 1][1]].strip()
