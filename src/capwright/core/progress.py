"""One line of progress on stderr: done, rate, failures, note and time left."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self


def duration(seconds: float) -> str:
    """Seconds as `4s`, `3m20s` or `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def rate(count: float, seconds: float, unit: str) -> str:
    """For example `31 pictures/s`, or `0.4 pictures/s` where whole numbers would hide it."""
    value = count / max(seconds, 1e-9)
    return f"{value:,.0f} {unit}/s" if value >= 10 or value == 0 else f"{value:.1f} {unit}/s"


class Progress:
    """Progress of one long step; on a terminal the line is rewritten, elsewhere one is added
    every ten seconds.
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self._start = start
        self.failed = 0
        self._began = self._shown = time.monotonic()
        self._ended: float | None = None
        self._note = ""
        self._live = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """Seconds that the rate is taken over: to the last unit, where all are done."""
        return (self._ended or time.monotonic()) - self._began

    def warmed_up(self) -> None:
        """Take the rate from now on: what came before was preparation."""
        self._began = time.monotonic()

    def advance(self, n: int = 1, failed: int = 0, note: str = "") -> None:
        """Count `n` more units (of which `failed` failed) and show the line if it is time."""
        self.reached(self.done + n, self.failed + failed, note)

    def reached(self, done: int, failed: int, note: str = "") -> None:
        """Say how many units are done (of which `failed` failed); show the line if it is time."""
        self.done, self.failed = done, failed
        self._note = note or self._note
        now = time.monotonic()
        self._ended = now if done >= self.total else None
        if now - self._shown >= (0.2 if self._live else 10.0):
            self._shown = now
            self._write("\r" if self._live else "", "" if self._live else "\n")

    def say(self, text: str) -> None:
        """Write a line of its own."""
        sys.stderr.write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._write("\r" if self._live else "", "\n")

    def _write(self, before: str, after: str) -> None:
        seconds = max(self.seconds, 1e-9)
        done = self.done - self._start
        parts = [
            f"{self.label}: {self.done:,}/{self.total:,} {self.unit}",
            rate(done, seconds, self.unit),
        ]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self._note:
            parts.append(self._note)
        if self.done < self.total:
            left = (self.total - self.done) * seconds / done if done > 0 else None
            parts.append("starting" if left is None else f"{duration(left)} left")
        else:
            parts.append(f"took {duration(seconds)}")
        line = ", ".join(parts)
        clear = "\x1b[K" if self._live else ""
        sys.stderr.write(f"{before}{line}{clear}{after}")
        sys.stderr.flush()


class Steps:
    """The headline of each step of a long story, with the time that is left for all of it.

    `expected` gives each step's usual seconds; what is left is scaled by the pace of the steps
    that are done.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._expected = dict(expected)
        self._names = list(expected)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._began

    def begin(self, name: str) -> None:
        """Print the headline of the step `name`, one of the expected."""
        at = self._names.index(name)
        usual_done = sum(self._expected[n] for n in self._names[:at])
        usual_left = sum(self._expected[n] for n in self._names[at:])
        pace = self.seconds / usual_done if usual_done else 1.0
        left = duration(usual_left * pace)
        passed = duration(self.seconds)
        sys.stderr.write(
            f"[{at + 1}/{len(self._names)}] {name} ({passed} passed, about {left} left)\n"
        )
        sys.stderr.flush()
