"""Skip and count what is broken, and stop when too much is."""

from collections import Counter
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

    def ok(self, n: int = 1) -> None:
        """Count `n` items that went well."""
        self.seen += n

    def add(self, reason: str) -> None:
        """Count one failed item."""
        self.seen += 1
        self.counts[reason] += 1
        if self.seen >= MIN_SEEN:
            self.check()

    def check(self) -> None:
        """Raise CapwrightError with the three most frequent reasons when the rate is too high."""
        failed = self.counts.total()
        if failed > self.max_rate * self.seen:
            reasons = "; ".join(f"{n} x {reason}" for reason, n in self.counts.most_common(3))
            raise CapwrightError(
                f"{failed} of {self.seen} {self.what} failed, more than the allowed share "
                f"{self.max_rate:g} ({reasons}): repair the input or raise max_failure_rate"
            )
