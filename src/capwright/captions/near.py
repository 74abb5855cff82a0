"""Near duplicates by perceptual hash: all pairs of 64-bit hashes within a Hamming distance, for ten
million pictures in the memory of a few arrays.

Reads and writes nothing. Algorithm: the hash is cut into d + j blocks, so two hashes that differ
in at most d bits agree in at least j whole blocks (the pigeonhole principle; Manku et al.,
"Detecting near-duplicates for web crawling", WWW 2007). For every choice of j blocks the hashes are
sorted by these first, and those that agree in them are compared bit by bit. j is chosen by what
sorting and comparing will cost.

Hubs: equal hashes are one node from the start, and a hash is compared with `WINDOW` neighbours at
most in each sorted table, so that a bucket of n costs n * WINDOW and not n * n. A hash with few
bits set comes from a picture of one colour and says nothing about it: it has no near duplicates.

Names: u hashes without repetition, sorted; left and right the two ends of pairs.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]
Pairs = tuple[Ints, Ints]

BITS = 64
WINDOW = 512
LEAST_BITS = 8
NUMBER_BITS = 48
FAR = 1 << 60
MOST_EDGES = 4_000_000  # pairs that wait before they are joined
SORT_COST = 0.5  # what a level of sorting costs a hash, in comparisons with another
FEW = 0.1  # share of hashes below which picking them beats comparing all


def hamming(left: Hashes, right: Hashes) -> npt.NDArray[np.uint8]:
    """Bits that differ."""
    bits: npt.NDArray[np.uint8] = np.bitwise_count(left ^ right)
    return bits


def tells(hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Whether a hash comes from a picture with something on it."""
    return np.bitwise_count(hashes) >= LEAST_BITS


def near_pairs(u: Hashes, max_distance: int, window: int = WINDOW) -> Iterator[Pairs]:
    """Pairs of different hashes within `max_distance` bits, in parts; a pair may come again.

    Complete where no bucket has more than `window` members.
    """
    if len(u) < 2 or max_distance < 1:
        return
    agree = blocks_that_agree(len(u), max_distance)
    edges = np.linspace(0, BITS, max_distance + agree + 1).round().astype(int).tolist()
    blocks = list(itertools.pairwise(edges))
    for chosen in itertools.combinations(blocks, agree):
        yield from _pairs_of_table(u, blocks, chosen, max_distance, window)


def blocks_that_agree(count: int, max_distance: int) -> int:
    """How many blocks two near hashes are asked to share, by the cost of the tables."""

    def cost(agree: int) -> float:
        blocks = max_distance + agree
        compared = count / 2 ** (BITS * agree / blocks + 1)
        return math.comb(blocks, agree) * (SORT_COST * math.log2(count) + compared)

    return min(range(1, 6), key=cost)


def components(count: int, pairs: Iterable[Pairs]) -> Ints:
    """The connected component of each of `count` nodes, numbered from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    labels = np.arange(count)
    waiting: list[Pairs] = []

    def join() -> Ints:
        left, right = (np.concatenate(ends) for ends in zip(*waiting, strict=True))
        ones = np.ones(len(left), np.bool_)
        graph = coo_array((ones, (labels[left], labels[right])), shape=(count, count))
        _, joined = connected_components(graph, directed=False)
        waiting.clear()
        found: Ints = joined[labels].astype(np.int64)
        return found

    for part in pairs:
        waiting.append(part)
        if sum(len(left) for left, _ in waiting) > MOST_EDGES:
            labels = join()
    return join() if waiting else labels


class HashLikeness:
    """Which pictures are near by their hashes, for `dedup`; rows are numbers of pictures."""

    def __init__(self, hashes: Hashes, others: Hashes, max_distance: int) -> None:
        self.hashes, self.others, self.limit = hashes, others, float(max_distance)
        self._bits = max_distance

    def components(self, rows: Ints) -> Ints:
        """Numbers that rows share with those that they may be near to."""
        u, node = np.unique(self.hashes[rows], return_inverse=True)
        labels = components(len(u), near_pairs(u, self._bits))[node]
        alone = len(u) + np.arange(len(rows))
        joined: Ints = np.where(tells(self.hashes[rows]), labels, alone)
        return joined

    def distance(self, left: Ints, right: Ints) -> Floats:
        """Bits in which pairs of rows differ."""
        return hamming(self.hashes[left], self.hashes[right]).astype(np.float32)

    def nearest_other(self) -> tuple[Ints, Floats]:
        """For every picture: the nearest of the other set, or -1, and how near it is."""
        mine, theirs = (np.flatnonzero(tells(h)) for h in (self.hashes, self.others))
        u, node = np.unique(
            np.concatenate([self.hashes[mine], self.others[theirs]]), return_inverse=True
        )
        # the distance and the number of the other picture in one number, of which the least counts
        other = np.full(len(u), FAR, np.int64)
        np.minimum.at(other, node[len(mine) :], theirs)
        best = other.copy()
        for left, right in near_pairs(u, self._bits):
            bits = hamming(u[left], u[right]).astype(np.int64) << NUMBER_BITS
            np.minimum.at(best, left, np.minimum(bits | other[right], FAR))
            np.minimum.at(best, right, np.minimum(bits | other[left], FAR))
        index = np.full(len(self.hashes), -1)
        distance = np.zeros(len(self.hashes), np.float32)
        found = best[node[: len(mine)]]
        near = found < FAR
        index[mine[near]] = found[near] & ((1 << NUMBER_BITS) - 1)
        distance[mine[near]] = found[near] >> NUMBER_BITS
        return index, distance


def _pairs_of_table(
    u: Hashes,
    blocks: list[tuple[int, int]],
    chosen: tuple[tuple[int, int], ...],
    max_distance: int,
    window: int,
) -> Iterator[Pairs]:
    """Compare the hashes that agree in the chosen blocks, neighbours in sorted order first."""
    rest = [block for block in blocks if block not in chosen]
    turned = _reorder(u, [*chosen, *rest])
    order = np.argsort(turned)
    turned = turned[order]
    # the chosen blocks are the highest bits: two hashes agree in them if their difference is small
    agreeing = np.uint64(1 << sum(stop - start for start, stop in rest))
    at: Ints | None = None  # None: so many agree that comparing all is faster than picking them
    for step in range(1, min(window, len(u) - 1) + 1):
        if at is None:
            differ = turned[:-step] ^ turned[step:]
        else:
            at = at[at + step < len(u)]
            differ = turned[at] ^ turned[at + step]
        agree = differ < agreeing
        close = np.flatnonzero(agree & (np.bitwise_count(differ) <= max_distance))
        if len(close):
            left = close if at is None else at[close]
            yield order[left], order[left + step]
        if at is not None:
            at = at[agree]
        elif np.count_nonzero(agree) < len(u) * FEW:
            at = np.flatnonzero(agree)
        if at is not None and not len(at):
            return


def _reorder(u: Hashes, blocks: list[tuple[int, int]]) -> Hashes:
    """The hashes with their blocks in another order, the first in the highest bits."""
    turned = np.zeros_like(u)
    for start, stop in blocks:
        size = stop - start
        block = (u >> np.uint64(BITS - stop)) & np.uint64((1 << size) - 1)
        turned = (turned << np.uint64(size)) | block
    return turned
