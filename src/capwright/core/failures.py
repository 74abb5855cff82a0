"""Skip and count what is broken, and stop when too much is."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from capwright.core.errors import CapwrightError

MIN_SEEN = 20  # below this many items one bad file would look like a broken corpus


@dataclass
class Failures:
    """Counts failures by reason; over `max_rate` (share of all items seen) it raises
    CapwrightError.
    """

    what: str
    max_rate: float = 0.05
    counts: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    advice: str = "repair the input or raise max_failure_rate"

    def ok(self, n: int = 1) -> None:
        """Count `n` items that went well."""
        self.seen += n

    def add(self, reason: str) -> None:
        """Count one failed item."""
        self.merge({reason: 1}, 1)

    def merge(self, counts: Mapping[str, int], seen: int) -> None:
        """Count `seen` items, of which those in `counts` failed, as `watch` does."""
        self.watch(self.counts + Counter(counts), self.seen + seen)

    def watch(self, counts: Counter[str], seen: int) -> None:
        """Take the counts of a run so far instead of those held.

        In the middle of a run the rate must be exceeded by three standard deviations, so that two
        bad pictures among the first twenty do not stop it.
        """
        self.counts, self.seen = counts, seen
        allowed = self.max_rate * self.seen
        if self.seen >= MIN_SEEN and self.counts.total() > allowed + 3 * allowed**0.5:
            self.check()

    def check(self) -> None:
        """Raise CapwrightError with the three most frequent reasons when the rate is too high."""
        failed = self.counts.total()
        if failed > self.max_rate * self.seen:
            reasons = "; ".join(f"{n} x {reason}" for reason, n in self.counts.most_common(3))
            raise CapwrightError(
                f"{failed} of {self.seen} {self.what} failed, more than the allowed share "
                f"{self.max_rate:g} ({reasons}): {self.advice}"
            )
