"""The caption quality index: how much captions tell about their pictures, as one number 0..100.

Reads: cached feature maps and texts. Writes nothing that stays. `docs/caption-quality-index.md`
defines it for users; `python -m capwright.recipes.validate_quality_index` validates it.

Algorithm: the mutual information of picture and caption, bounded from below by contrast (InfoNCE,
arXiv 1807.03748) on pairs that were not trained on. The pairs are cut into two halves; near equal
pictures (perceptual hash) stay in one half. A small tower (`score/tower.py`, on the features of a
frozen ImageNet trunk) learns from each half in turn and is asked about the other, in batches of N
pairs: which of N captions belongs to this picture, and which of N pictures to this caption? With p
the probability of the right answer,

    bits of a pair = log2(N p)        index = 100 x mean(bits) / log2 N

where p = (1 - e) softmax(scale x similarity) + e / N. The scale and the share e of captions that
may belong elsewhere are the only two numbers fitted on the held-out pairs: a tower that is too sure
of itself is no fault of the captions, and a wrong caption costs its own information alone. Scale
zero gives zero bits, so the index is never negative.

Pictures without a text are no pairs. They cost through the learning: from the same number of
pictures and the same number of steps, fewer pairs teach less that holds for others.

Shapes: K batches, N pairs of a batch, P pairs.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from capwright.captions.maps import load_maps
from capwright.captions.near import components, near_pairs, tells
from capwright.captions.score.tower import Tower, TowerConfig, train_tower
from capwright.core.errors import CapwrightError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NEAR_BITS = 3  # hashes that differ in so few bits are one picture
FIT_STEPS = 40
VERSION = "caption-quality-index/v1"


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """How the index is measured; indices compare only where these are equal."""

    pictures: int = 4000
    """Pictures that are looked at; those with a text are the pairs."""
    contrast: int = 128
    """Pairs of a batch, N: log2 N bits is the most that can be measured."""
    rounds: int = 2
    """Times that every held-out pair is asked about, among others each time."""
    picture_size: int = 128
    """Side in pixels at which the trunk sees pictures; a multiple of 32."""
    seed: int = 0
    """Draws the pictures, the halves, the batches and the tower's first weights."""
    tower: TowerConfig = field(default_factory=lambda: TowerConfig(steps=200, batch_size=64))
    """The tower and its training."""

    def __post_init__(self) -> None:
        if self.contrast < 2:
            raise CapwrightError(
                f"contrast is {self.contrast}, but a contrast needs at least 2 pairs: try 128"
            )
        if self.rounds < 1:
            raise CapwrightError(f"rounds is {self.rounds}, but must be at least 1: try 2")

    @property
    def most_bits(self) -> float:
        """What a source can reach at most, log2 N."""
        return math.log2(self.contrast)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The index of one source; None where it could not be measured, and `why_not` says why."""

    index: float | None
    """0..100."""
    error95: float | None
    """Half of the 95% interval over held-out pairs; noise of the training is not in it."""
    bits: float | None
    """Mean information of a pair with a text."""
    pairs: int
    """Pairs that were looked at."""
    why_not: str = ""
    scale: tuple[float, ...] = ()
    """The fitted scale of each half."""
    elsewhere: tuple[float, ...] = ()
    """The fitted share of captions that may belong to another picture, of each half."""
    pair_bits: tuple[float, ...] = ()
    """log2(N p) of every pair, in order; below 0 is worse than no caption."""


def quality_index(
    records: npt.NDArray[Any],
    hashes: npt.NDArray[np.int64],
    texts: Sequence[str],
    config: QualityConfig,
) -> Quality:
    """Measure pairs of a picture (feature maps and perceptual hash) and a text, all parallel."""
    halves = split_halves(hashes, config.seed)
    least = min(len(half) for half in halves)
    if least < config.contrast:
        return Quality(
            index=None, error95=None, bits=None, pairs=len(texts),
            why_not=f"{len(texts)} pairs give a half of {least} different pictures, and the index "
            f"needs {config.contrast} in each half",
        )  # fmt: skip
    pair_bits_P = np.zeros(len(texts))
    fitted: list[tuple[float, float]] = []
    for trained, held in (halves, halves[::-1]):
        tower = _train(records[trained], [texts[p] for p in trained], config)
        batches_KN = draw_batches(held, config.contrast, config.rounds, config.seed)
        similarity_KNN = _similarities(tower, records, texts, batches_KN)
        log_p_KN, scale, elsewhere = calibrated(similarity_KNN)
        fitted.append((scale, elsewhere))
        bits_KN = (log_p_KN / math.log(2) + config.most_bits).numpy()
        asked_P = np.bincount(batches_KN.ravel(), minlength=len(texts))
        sum_P = np.bincount(batches_KN.ravel(), bits_KN.ravel(), minlength=len(texts))
        pair_bits_P[held] = sum_P[held] / asked_P[held]
    return _summary(pair_bits_P, fitted, config)


def _summary(
    pair_bits_P: Floats, fitted: list[tuple[float, float]], config: QualityConfig
) -> Quality:
    bits = max(0.0, float(pair_bits_P.mean()))
    deviation = float(pair_bits_P.std() / math.sqrt(len(pair_bits_P)))
    points = 100 / config.most_bits
    return Quality(
        index=points * bits,
        error95=points * 1.96 * deviation,
        bits=bits,
        pairs=len(pair_bits_P),
        scale=tuple(scale for scale, _ in fitted),
        elsewhere=tuple(share for _, share in fitted),
        pair_bits=tuple(pair_bits_P.tolist()),
    )


def split_halves(hashes: npt.NDArray[np.int64], seed: int) -> tuple[Ints, Ints]:
    """Two sorted halves of the pairs; pictures with near hashes are in the same half."""
    unsigned = hashes.view(np.uint64)
    unique, place_P = np.unique(unsigned, return_inverse=True)
    told = np.flatnonzero(tells(unique))  # a blank picture's hash says nothing about it
    pairs = near_pairs(unique[told], NEAR_BITS)
    joined = components(len(unique), ((told[a], told[b]) for a, b in pairs))
    group_P = np.where(tells(unsigned), joined[place_P], len(unique) + np.arange(len(hashes)))
    _, group_P, size_G = np.unique(group_P, return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 1]).permutation(len(size_G))
    order = order[np.argsort(-size_G[order], kind="stable")]  # large groups while both have room
    side_G, filled = np.zeros(len(size_G), np.int64), [0, 0]
    for group in order:
        side = int(filled[1] < filled[0])
        side_G[group] = side
        filled[side] += int(size_G[group])
    side_P = side_G[group_P]
    return np.flatnonzero(side_P == 0), np.flatnonzero(side_P == 1)


def draw_batches(rows: Ints, size: int, rounds: int, seed: int) -> Ints:
    """Batches [K, size] without repetition inside a batch; each round asks about every row, and
    the last batch of a round is filled up with rows of its beginning.
    """
    rng = np.random.default_rng([seed, 2])
    batches = []
    for _ in range(rounds):
        order = rng.permutation(rows)
        missing = -len(order) % size
        batches.append(np.concatenate([order, order[:missing]]).reshape(-1, size))
    return np.concatenate(batches)


def calibrated(similarity_KNN: Tensor) -> tuple[Tensor, float, float]:
    """Log probability of the right answer for each pair [K, N], the mean of both directions, with
    the scale and the share e that make it largest on average.
    """
    raw = nn.Parameter(torch.tensor([2.0, -2.0]))  # log scale, logit of e
    optimizer = torch.optim.LBFGS([raw], max_iter=FIT_STEPS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = -log_probability(similarity_KNN, raw[0].exp(), raw[1].sigmoid()).mean()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)
    scale, elsewhere = raw.detach()[0].exp(), raw.detach()[1].sigmoid()
    found_KN = log_probability(similarity_KNN, scale, elsewhere)
    return found_KN, float(scale), float(elsewhere)


def log_probability(similarity_KNN: Tensor, scale: Tensor, elsewhere: Tensor) -> Tensor:
    """log((1 - e) softmax + e / N) at the right answer, mean of both directions, [K, N]."""
    logits_KNN = similarity_KNN * scale
    right_KN = logits_KNN.diagonal(dim1=1, dim2=2)
    floor = torch.log(elsewhere / similarity_KNN.shape[-1])
    sure = torch.log1p(-elsewhere)
    both = [
        torch.logaddexp(right_KN - logits_KNN.logsumexp(dim) + sure, floor.expand_as(right_KN))
        for dim in (1, 2)
    ]
    return (both[0] + both[1]) / 2


def _train(records: npt.NDArray[Any], texts: Sequence[str], config: QualityConfig) -> Tower:
    tower = replace(config.tower, seed=config.seed)
    with tempfile.TemporaryDirectory(prefix="capwright-") as folder:
        return train_tower(records, texts, [""] * len(texts), tower, Path(folder))


@torch.no_grad()
def _similarities(
    tower: Tower, records: npt.NDArray[Any], texts: Sequence[str], batches_KN: Ints
) -> Tensor:
    return torch.stack(
        [
            tower.similarity(
                tower.encode_pictures(load_maps(records, batch)), [texts[p] for p in batch]
            )
            for batch in batches_KN
        ]
    )
