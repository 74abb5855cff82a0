"""What all workers of a stage did so far: the progress line, and the alarm when too much fails."""

from capwright.captions.runner import ShardProgress
from capwright.core.failures import Failures
from capwright.core.progress import Progress, rate


class Tally:
    """What all workers did so far: the progress line and the alarm of a run."""

    def __init__(self, line: Progress, failures: Failures) -> None:
        self.total = ShardProgress()
        self._line, self._failures = line, failures
        self._fine = failures.seen
        self._in_flight: dict[str, ShardProgress] = {}
        self.warm_up_s = 0.0
        self.seconds = 0.0  # from the first worker's start to the last shard's end

    def ready(self) -> None:
        """A worker is ready; with the first one the clock of the rates starts."""
        if not self.warm_up_s:
            self.warm_up_s = self._line.seconds
            self._line.warmed_up()

    def step(self, shard: str, progress: ShardProgress) -> None:
        """A shard in flight came so far; raises CapwrightError when too many pictures fail."""
        self._in_flight[shard] = progress
        self.show()

    def done(self, shard: str, progress: ShardProgress) -> None:
        """A shard is written; raises as `step` does."""
        self._in_flight.pop(shard, None)
        self.total.add(progress)
        self.seconds = self._line.seconds
        self.show()

    def lost(self, shard: str) -> None:
        """A shard's worker died: what it did is void, what it spent is spent."""
        gone = self._in_flight.pop(shard, ShardProgress())
        self.total.add(ShardProgress(tokens=gone.tokens, cost=gone.cost))

    def say(self, text: str) -> None:
        """Tell the user of something that is no error."""
        self._line.say(text)

    def show(self) -> None:
        """Bring line and alarm up to date."""
        now = self.total.counts()
        for progress in self._in_flight.values():
            now.add(progress)
        self._line.reached(now.pictures, now.failures.total(), _note(now, self._line.seconds))
        self._failures.watch(now.failures, self._fine + now.pictures)


def _note(total: ShardProgress, seconds: float) -> str:
    parts = []
    if total.captions:
        parts.append(rate(total.captions, seconds, "captions"))
    if total.tokens:
        parts.append(rate(total.tokens, seconds, "tokens"))
    if total.cost:
        parts.append(f"cost {total.cost:,.2f}")
    parts += [f"{count} x {reason}" for reason, count in total.failures.most_common(3)]
    return ", ".join(parts)
