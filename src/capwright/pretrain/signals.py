"""SIGTERM asks for an orderly end: the step in hand is finished, a checkpoint written, then exit.

Machines that are taken back (spot instances, Slurm with `--signal=TERM@120`) send it some seconds
before."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM  # what a shell reports for a program that SIGTERM ended


class Asked:
    """Whether an orderly end was asked for."""

    def __init__(self) -> None:
        self.to_stop = False

    def __bool__(self) -> bool:
        return self.to_stop


class Stopped(Exception):
    """Training ended early, on request, with a checkpoint."""

    def __init__(self, samples_seen: int, checkpoint: str) -> None:
        super().__init__(
            f"stopped by SIGTERM at {samples_seen:,} samples; {checkpoint} is written, and the "
            "same command goes on from it"
        )


@contextmanager
def watch() -> Iterator[Asked]:
    """Inside the block SIGTERM is noted and not obeyed at once."""
    asked = Asked()

    def note(number: int, frame: Any) -> None:
        asked.to_stop = True

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not the main thread, which alone may set handlers
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def leave_to_the_parent(worker: int) -> None:
    """In a loader's process: SIGTERM goes to the whole group, and the last step needs its batch.

    It ends when its parent shuts the loader down, or dies.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
