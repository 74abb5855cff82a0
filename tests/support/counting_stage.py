"""A caption stage whose worker notes each picture in a file, as a command that tests can kill.

Run: `python counting_stage.py WORK LOG [options of a caption stage]`.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, NamedTuple

import click
import pyarrow as pa

from capwright.captions.runner import (
    FAILED,
    Rows,
    ShardProgress,
    preview,
    run_stage,
    shard_seed,
    stage_folder,
)
from capwright.cli import UserFault
from capwright.cli._running import running_options, show
from capwright.core.errors import CapwrightError

STAGE = "describe-counting"


@dataclass(frozen=True, kw_only=True)
class CountingWorker:
    """Describes a picture by its key and its shard's seed."""

    log: Path
    pause_s: float = 0.0
    deadly: str = ""  # shard that kills its worker
    broken: str = ""  # reason why every third picture fails, unless the file `repaired` exists
    faulty: str = ""  # shard that raises

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        shard = table["shard"][0].as_py()
        if shard == self.faulty:
            raise UnkindError("a", "b")
        rows = []
        broken = self.broken and not self.log.with_name("repaired").exists()
        for i, key in enumerate(table["key"].to_pylist()):
            self._note(shard, key)
            if shard == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.pause_s)
            row: dict[str, Any] = {"key": key, "source": STAGE, "seed": shard_seed(0, shard)}
            if broken and i % 3 == 2:
                progress.failed(self.broken)
                row |= {"text": "", "keep": False, "reason": FAILED + self.broken}
            else:
                row |= {"text": f"picture {key} of {shard}"}
            progress.advance(pictures=1, captions=1, tokens=4, cost=0.5)
            rows.append(row)
        return rows

    def _note(self, shard: str, key: str) -> None:
        file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{os.getpid()} {shard} {key}\n".encode())
        os.close(file)


class UnkindError(Exception):
    """An exception that can be pickled, but not read back."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"unkind {one}")


def make(worker: CountingWorker) -> CountingWorker:
    """What run_stage calls in each process."""
    if worker.deadly == "start":
        os._exit(3)
    return worker


class Line(NamedTuple):
    """A picture that a worker began."""

    process: int
    shard: str
    key: str


def read_log(log: Path) -> list[Line]:
    """Every picture that was begun, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [Line(int(p), shard, key) for p, shard, key in (line.split() for line in lines)]


@contextmanager
def running(work: Path, log: Path, *options: str) -> Iterator["Popen[str]"]:
    """The command in a process of its own, which is dead when the block ends."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "src"), str(Path(__file__).parent)])
    process = Popen(
        [sys.executable, __file__, str(work), str(log), *options],
        stdout=PIPE, stderr=PIPE, stdin=DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        until(lambda: not any(alive(pid) for pid in {line.process for line in read_log(log)}))


def alive(process: int) -> bool:
    """Whether a process runs; one that is dead but not yet buried does not."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--pause", default=0.0, help="Seconds a picture.")
@click.option("--deadly", default="", help="Shard that kills its worker.")
@click.option("--broken", default="", help="Reason why pictures fail.")
@click.option("--faulty", default="", help="Shard that raises.")
@running_options
def command(
    work: Path, log: Path, pause: float, deadly: str, broken: str, faulty: str,
    running: Any, dry_run: int | None,
) -> None:  # fmt: skip
    """Describe by counting."""
    worker = CountingWorker(log=log, pause_s=pause, deadly=deadly, broken=broken, faulty=faulty)
    try:
        if dry_run:
            show(preview(work, partial(make, worker), dry_run))
        else:
            show(run_stage(work, stage_folder(work, STAGE), {}, partial(make, worker), running))
    except CapwrightError as error:
        raise UserFault(str(error)) from error


if __name__ == "__main__":
    # classes of __main__ have another name in worker processes
    from counting_stage import command as main

    main()
