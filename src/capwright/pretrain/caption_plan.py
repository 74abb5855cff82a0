"""What a run is trained on, as a tree: each source with its counts and its say.

Shapes: S sources, N rows of the index, Q patterns (which sources a picture has captions from).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from capwright.corpus.sidecars import JoinedCaptions
from capwright.pretrain import schedule
from capwright.pretrain.settings.sampling import CaptionSource, Sampling

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK = 1 << 24  # bytes of text that are looked at together
SET_NAMES = ("real", "synthetic")


def patterns(bounds_SN1: Sequence[Ints]) -> tuple[NDArray[np.bool_], Ints]:
    """The patterns that occur, bool [S, Q], and how many pictures have each; none is left out."""
    code_N = np.zeros(len(bounds_SN1[0]) - 1, np.int64)
    patterns_QS = np.zeros((1, 0), bool)
    for bounds_N1 in bounds_SN1:  # a code of few bits at every step, however many sources
        code_N, code_now_Q = _renumber(code_N * 2 + (np.diff(bounds_N1) > 0))
        patterns_QS = np.column_stack([patterns_QS[code_now_Q // 2], code_now_Q % 2 > 0])
    with_caption_Q = patterns_QS.any(axis=1)
    return patterns_QS[with_caption_Q].T, np.bincount(code_N)[with_caption_Q]


def _renumber(code_N: Ints) -> tuple[Ints, Ints]:
    """The codes that occur, numbered from 0 as they rise, and what each number stood for."""
    found_Q = np.flatnonzero(np.bincount(code_N, minlength=2))
    number = np.zeros(found_Q[-1] + 1, np.int64)
    number[found_Q] = np.arange(len(found_Q))
    return number[code_N], found_Q


def mean_words(captions: JoinedCaptions) -> float:
    """Words of a caption, between ASCII white space."""
    offsets_T1, data = captions.buffers()
    starts_T = offsets_T1[:-1]
    if not len(starts_T):
        return 0.0
    words = 0
    for start in range(0, len(data), BLOCK):
        part = data[max(start - 1, 0) : start + BLOCK] > ord(" ")
        words += int(np.count_nonzero(part[1:] & ~part[:-1]))
    # a caption's first word follows no space but the end of another caption
    before_T = np.where(starts_T > 0, data[starts_T - 1], ord("."))
    words += int(np.count_nonzero((data[starts_T] > ord(" ")) & (before_T > ord(" "))))
    return words / len(starts_T)


def tree(
    *,
    sources: Sequence[CaptionSource],
    sampling: Sampling,
    sets_S: Ints,
    captions: Sequence[JoinedCaptions],
    weights_SQ: Floats,
    pictures_Q: Ints,
) -> list[str]:
    """Lines of text; a branch for each source, under its caption set in the mode `both`."""
    lines = [f"captions · {_rule(sampling)} · {pictures_Q.sum():,} pictures"]
    sets = range(sampling.sets)
    for number in sets:
        mine_S = np.flatnonzero(sets_S == number).tolist()
        mine_SQ = weights_SQ * (sets_S == number)[:, None]
        stem = ""
        if sampling.mode == "both":
            has = pictures_Q[mine_SQ.any(axis=0)].sum()
            lines.append(f"{_branch(number == sets[-1])}{SET_NAMES[number]} · {has:,} pairs a pass")
            stem = "   " if number == sets[-1] else "│  "
        says_S = _says(sampling, mine_SQ, pictures_Q)
        width = max(len(sources[s].name) for s in mine_S)
        for s in mine_S:
            source, of = sources[s], captions[s]
            pictures = np.count_nonzero(np.diff(of.bounds_N1))
            lines.append(
                f"{stem}{_branch(s == mine_S[-1])}{source.name:{width}}  {pictures:,} pictures · "
                f"{len(of.texts):,} captions · {mean_words(of):.1f} words · "
                f"probability {schedule.as_text(source.probability)}{says_S[s]}"
                f"{_by_score(source, sampling)}"
            )
    return lines


def _branch(last: bool) -> str:
    return "└─ " if last else "├─ "


def _rule(sampling: Sampling) -> str:
    most = sampling.max_captions
    rule = {
        "mix": "mix, one a picture",
        "both": "both, a real and a synthetic one a picture",
        "concat": f"concat, one of each source in {sampling.order} order",
        "multi_positive": f"multi_positive, {'all' if most is None else f'up to {most}'} a picture",
    }[sampling.mode]
    if sampling.sub_caption > 0:
        rule += (
            f" · {sampling.sub_caption:.0%} of those over {sampling.sub_caption_over_words} words "
            f"cut to 1-{sampling.sub_caption_sentences} sentences"
        )
    return rule


def _says(sampling: Sampling, weights_SQ: Floats, pictures_Q: Ints) -> list[str]:
    """The share of a pass's captions (of this set) that come from each source."""
    sum_Q = weights_SQ.sum(axis=0)
    total = pictures_Q[sum_Q > 0].sum()
    if sampling.mode == "concat":
        shares_S = (weights_SQ > 0) @ pictures_Q / max(total, 1)
        return [f" → in {share:.1%} of captions" for share in shares_S]
    if sampling.mode == "multi_positive":
        return ["" for _ in weights_SQ]
    shares_S = weights_SQ / np.where(sum_Q > 0, sum_Q, 1) @ pictures_Q / max(total, 1)
    return [f" → {share:.1%} of captions" for share in shares_S]


def _by_score(source: CaptionSource, sampling: Sampling) -> str:
    if source.score is None or not sampling.by_score:
        return ""
    power = "" if sampling.by_score == 1 else f"^{sampling.by_score:g}"
    return f", by {source.score}{power}"
