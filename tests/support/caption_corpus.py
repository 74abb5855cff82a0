"""A small index with two stages of captions, the same as Python lists, and what draws from it."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from capwright.corpus.sidecars import write_sidecar
from capwright.pretrain.caption_sampler import CaptionSampler, Chosen
from capwright.pretrain.draws import Draws
from capwright.pretrain.settings.sampling import CaptionSource, Sampling

ROWS = 120
# picture 0 of the small index has alt text twice, two short and two long captions
ALT, MORE = "red car for sale", "IMG 12"
SHORT = ("a red car.", "a car on a road")
LONG = ("A red car. It stands on a road. Trees are behind it.", "A car and a road.")


class Corpus:
    """An index of three shards and two stages, and the same as Python lists."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.folder = folder
        rows: list[dict[str, Any]] = []
        stages: dict[str, dict[str, list[dict[str, Any]]]] = {"short": {}, "long": {}}
        self.expected: dict[str, list[list[str]]] = {"alt": [], "short": [], "long": []}
        self.scores: list[list[float]] = []
        for i in range(ROWS):
            shard = f"{i * 3 // ROWS:05d}"
            texts = [f"alt {i} {n}" for n in range(rng.choice([0, 1, 1, 3]))]
            more = texts[1:] or rng.choice([[], None])
            # keys come back in each shard
            key = f"{i % (ROWS // 3)}"
            rows.append(
                {"key": key, "shard": shard, "text": (texts or [""])[0], "more_texts": more}
            )
            self.expected["alt"].append(texts)
            kept_scores = []
            for stage, shards in stages.items():
                kept = []
                for n in range(rng.choice([0, 1, 2, 4])):
                    row = {"key": key, "source": rng.choice("xy"), "text": f"{stage} {i} {n}"}
                    row |= {"keep": rng.random() < 0.8, "score": rng.choice([0.1, 0.5, 1.0])}
                    row["text"] = "" if rng.random() < 0.1 else row["text"]
                    shards.setdefault(shard, []).append(row)
                    if row["keep"] and row["text"]:
                        kept.append(row["text"])
                        if stage == "short":
                            kept_scores.append(row["score"])
                self.expected[stage].append(kept)
            self.scores.append(kept_scores)
        for stage, shards in stages.items():
            for shard, captions in shards.items():
                own: dict[str, list[dict[str, Any]]] = {}
                for row in captions:
                    own.setdefault(row["key"], []).append(row)
                keys = [*own]
                rng.shuffle(keys)  # the sidecar's order of pictures is its own
                stray = {"key": "no such picture", "source": "x", "text": "stray"}
                write_sidecar(folder / stage, shard, [stray, *(r for k in keys for r in own[k])])
        self.index = pa.Table.from_pylist(rows)

    def source(self, name: str, **changes: Any) -> CaptionSource:
        folder = None if name == "alt" else self.folder / name
        return CaptionSource(name=name, folder=folder, **changes)

    def sampler(self, sampling: Sampling, **probabilities: Any) -> CaptionSampler:
        sources = [self.source(n, probability=p) for n, p in probabilities.items()]
        return CaptionSampler(self.index, sources, sampling)


def one_picture(folder: Path, scores: tuple[float | None, ...] = (0.2, 0.6)) -> pa.Table:
    """An index of one picture with all kinds of captions."""
    for stage, texts in (("short", SHORT), ("long", LONG)):
        rows = [
            {"key": "1", "source": "x", "text": text, "score": score}
            for text, score in zip(texts, scores, strict=True)
        ]
        write_sidecar(folder / stage, "a", rows)
    return pa.table({"key": ["1"], "shard": ["a"], "text": [ALT], "more_texts": [[MORE]]})


def draw(
    sampler: CaptionSampler, share: float = 0.0, epoch: int = 0, seed: int = 3, many: int = 1
) -> Chosen:
    """All rows at an epoch, or the only row at many."""
    row_B = np.tile(sampler.rows, many)
    return sampler.choose(
        row_B, Draws(seed, row_B, np.repeat(range(epoch, epoch + many), len(sampler.rows))), share
    )


def by_picture(chosen: Chosen, pictures: int) -> list[list[tuple[int, str]]]:
    """(set, text) of the pairs of each picture; the pairs come in order of the pictures."""
    assert (np.diff(chosen.picture_P) >= 0).all()
    assert len(chosen.texts) == len(chosen.picture_P) == len(chosen.set_P)
    found: list[list[tuple[int, str]]] = [[] for _ in range(pictures)]
    for p, s, text in zip(chosen.picture_P, chosen.set_P, chosen.texts, strict=True):
        found[p].append((int(s), text))
    return found


def assert_drawn_as(counts: Counter[str], probabilities: dict[str, float]) -> None:
    """Pearson's chi-squared within five deviations of its mean, and nothing else was drawn."""
    assert set(counts) == {text for text, p in probabilities.items() if p > 0}
    total, weight = counts.total(), sum(probabilities.values())
    expected = {text: total * p / weight for text, p in probabilities.items() if p > 0}
    squares = sum((counts[text] - e) ** 2 / e for text, e in expected.items())
    freedom = len(expected) - 1
    assert squares <= freedom + 5 * (2 * freedom) ** 0.5, (counts, expected)
