"""From a similarity to a score in 0..1: the probability that the pair beats a shuffled one.

Reads and writes nothing. Every text is compared with itself on other pictures: with m and s the
mean and the deviation of its similarity to a fixed set of reference pictures,

    score = Phi((similarity - m) / s)

where Phi is the normal distribution's share below. Text that fits every picture alike ("free
shipping") thus scores about one half wherever it stands, however similar its words are, and
scores of long and short texts mean the same.
"""

import math
from dataclasses import dataclass

from torch import Tensor

LEAST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Shuffled:
    """A text's similarity to the reference pictures."""

    mean: float
    deviation: float

    def score(self, similarity: float) -> float:
        """Probability that this similarity beats a shuffled pair's."""
        if self.deviation < LEAST_DEVIATION:
            return 0.5  # the same for all pictures: it says nothing about any
        z = (similarity - self.mean) / self.deviation
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def shuffled(similarity_RT: Tensor) -> list[Shuffled]:
    """For each of T texts its similarity to R >= 2 reference pictures."""
    mean_T, deviation_T = similarity_RT.mean(0).tolist(), similarity_RT.std(0).tolist()
    return [Shuffled(m, s) for m, s in zip(mean_T, deviation_T, strict=True)]
