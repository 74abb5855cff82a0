"""Random numbers as a function of (seed, purpose, sample, epoch) and of nothing else.

A counter-based generator: each number is a hash of its coordinates (the finaliser of SplitMix64,
Steele et al., OOPSLA 2014, chained over the coordinates), so there is no state to share between
workers, ranks and a resumed run, and a batch is drawn without a loop.

Shapes: B samples, C numbers for each.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """The random numbers of a batch of samples at their epochs."""

    def __init__(self, seed: int, sample_B: NDArray[np.int64], epoch_B: NDArray[np.int64]) -> None:
        self.seed, self.sample_B, self.epoch_B = seed, sample_B, epoch_B

    def uniform(self, purpose: str, count: int) -> NDArray[np.float64]:
        """Uniform numbers in [0, 1), [B, C]; each purpose has its own, independent stream."""
        with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
            state_B = _mix(_key(self.seed, purpose) ^ self.sample_B.astype(np.uint64) * GOLDEN)
            state_B = _mix(state_B ^ self.epoch_B.astype(np.uint64) * GOLDEN)
            counter_C = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
            bits_BC = _mix(state_B[:, None] + counter_C)
        return np.asarray((bits_BC >> np.uint64(11)) * 2.0**-53)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's own generator at one step, for what models draw inside (dropout)."""
    return int.from_bytes(_digest(f"{seed}/{step}/{rank}")[:7])


def name_seed(seed: int, name: str) -> int:
    """Seed of torch's own generator for what is called `name`, such as an objective's weights."""
    return int.from_bytes(_digest(f"{seed}/{name}")[:7])


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of `count` samples in one pass."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def _key(seed: int, purpose: str) -> np.uint64:
    return np.uint64(int.from_bytes(_digest(f"{seed}/{purpose}")[:8]))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
