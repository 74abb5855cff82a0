"""Where the shards of a stage are worked on: here, in processes, or in the actors of a Ray cluster.

One worker is one process with one captioner, made once. Shards are handed out one at a time; a
worker that dies (out of memory, killed, its machine gone) is replaced and its shard begun anew, so
that a death costs at most the shard in flight. A shard that ended `MAX_DEATHS` workers is set
aside, the others are finished, and the error at the end names it. Workers end with their driver.

An engine is a `Crew`: it hires workers and says what they report. All else is the same for
processes and Ray. One local worker needs neither: it is this process.
"""

import os
import pickle
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import connection, context, get_context
from types import TracebackType
from typing import Any, Protocol, Self

from capwright.captions.runner import Job, Running, ShardProgress
from capwright.captions.tally import Tally
from capwright.core.errors import CapwrightError
from capwright.core.processes import end_with_parent

MAX_DEATHS = 3  # of workers on one shard, of workers in a row while they start, of shards in a run
TICK_S = 0.5
FAREWELL_S = 5.0  # for a worker to end by itself

News = tuple[str, Any]
"""("ready", None), ("step", progress), ("done", progress), ("error", exception), ("died", how)"""


class Crew(Protocol):
    """The workers of an engine, each known by a number; as a context it ends them all."""

    def hire(self) -> None:
        """Start one more worker; it reports "ready" when its captioner is made."""
        ...

    def give(self, worker: int, shard: str) -> None:
        """Let a worker that is free finish a shard."""
        ...

    def news(self) -> Iterator[tuple[int, News]]:
        """What workers report; waits `TICK_S` at most."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def work_off(job: Job, shards: Sequence[str], running: Running, tally: Tally) -> None:
    """Finish the shards with the engine that `running` asks for.

    Raises what a worker raised, and CapwrightError for shards whose workers die and, from `tally`,
    when too many pictures fail. What was finished until then stays.
    """
    if running.engine == "local" and running.workers == 1:
        worker = job.make()
        tally.ready()
        for shard in shards:
            progress = ShardProgress(show=partial(tally.step, shard))
            tally.done(shard, job.finish(worker, shard, progress))
        return
    workers = min(running.workers, len(shards))
    crew: Crew
    if running.engine == "ray":
        from capwright.captions.ray_crew import RayCrew

        crew = RayCrew(job, workers, running)
    else:
        crew = Processes(job, workers)
    with crew:
        _Foreman(crew, shards, tally).work(workers)


class _Foreman:
    """Hands out shards, one to each free worker, until all are done."""

    def __init__(self, crew: Crew, shards: Sequence[str], tally: Tally) -> None:
        self.crew, self.tally = crew, tally
        self.todo = deque(shards)
        self.hired = 0
        self.free: list[int] = []
        self.at_work: dict[int, str] = {}
        self.deaths: Counter[str] = Counter()
        self.failed_starts = 0
        self.set_aside: dict[str, str] = {}

    def work(self, workers: int) -> None:
        while self.todo or self.at_work:
            while self.hired < min(workers, len(self.todo) + len(self.at_work)):
                self.crew.hire()
                self.hired += 1
            for worker, (kind, what) in self.crew.news():
                self._hear(worker, kind, what)
            while self.todo and self.free:
                worker = self.free.pop()
                self.at_work[worker] = self.todo.popleft()
                self.crew.give(worker, self.at_work[worker])
            self.tally.show()
        self._check()

    def _hear(self, worker: int, kind: str, what: Any) -> None:
        if kind == "ready":
            self.failed_starts = 0
            self.tally.ready()
            self.free.append(worker)
        elif kind == "step":
            self.tally.step(self.at_work[worker], what)
        elif kind == "done":
            self.tally.done(self.at_work.pop(worker), what)
            self.free.append(worker)
        elif kind == "error":
            raise what
        else:
            self.hired -= 1
            self._bury(worker, what)

    def _bury(self, worker: int, how: str) -> None:
        if worker in self.at_work:
            shard = self.at_work.pop(worker)
            self.tally.lost(shard)
            self.deaths[shard] += 1
            if self.deaths[shard] < MAX_DEATHS:
                self.tally.say(f"a worker ended {how}; its shard {shard} begins anew")
                self.todo.appendleft(shard)
                return
            self.tally.say(f"a worker ended {how}; its shard {shard} is set aside")
            self.set_aside[shard] = how
            if len(self.set_aside) == MAX_DEATHS:
                self._check()
        elif worker in self.free:
            self.free.remove(worker)
        else:
            self.failed_starts += 1
            if self.failed_starts == MAX_DEATHS:
                raise CapwrightError(
                    f"{MAX_DEATHS} workers in a row ended while they started, the last {how}: "
                    "see their messages above, or try workers 1, which runs in this process"
                )

    def _check(self) -> None:
        if self.set_aside:
            shards = ", ".join(f"{shard} ({how})" for shard, how in self.set_aside.items())
            raise CapwrightError(
                f"{MAX_DEATHS} workers ended on each of these shards, which were set aside: "
                f"{shards}: give workers more memory, or fewer of them a machine, and run the same "
                "command again"
            )


class Processes:
    """A crew of processes on this machine."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        self._spawn = get_context("spawn")
        self._next = 0
        self._members: dict[int, tuple[context.SpawnProcess, connection.Connection]] = {}

    def hire(self) -> None:
        pipe, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=_work, args=(self._job, theirs, self._threads))
        # Ctrl-C reaches all processes of a terminal, but it is the driver's to act on. What is
        # blocked here stays blocked in the new process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._members[self._next] = process, pipe
        self._next += 1

    def give(self, worker: int, shard: str) -> None:
        with suppress(OSError):  # it died just now, which `news` tells
            self._members[worker][1].send(shard)

    def news(self) -> Iterator[tuple[int, News]]:
        owner: dict[Any, int] = {}
        for worker, (process, pipe) in self._members.items():
            owner |= {pipe: worker, process.sentinel: worker}
        for worker in {owner[ready] for ready in connection.wait(list(owner), TICK_S)}:
            process, pipe = self._members[worker]
            ended = not process.is_alive()  # asked first: what it sent before is still read
            try:
                while pipe.poll():
                    yield worker, pipe.recv()
            except (EOFError, OSError):
                process.join(FAREWELL_S)
                ended = True
            if ended:
                self._dismiss(worker)
                yield worker, ("died", _how(process.exitcode))

    def _dismiss(self, worker: int) -> None:
        process, pipe = self._members.pop(worker)
        pipe.close()
        if process.is_alive():
            process.kill()
            process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, pipe in self._members.values():
            pipe.close()  # a worker that waits for a shard ends by this
            if error is not None:
                process.terminate()
        for process, _ in self._members.values():
            process.join(FAREWELL_S)
            process.kill()
            process.join()


def _work(job: Job, pipe: connection.Connection, threads: int) -> None:
    """What a worker process does."""
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before torch is imported
    try:
        worker = job.make()
        pipe.send(("ready", None))
        for shard in _orders(pipe):
            progress = ShardProgress(show=lambda now: pipe.send(("step", now.counts())))
            pipe.send(("done", job.finish(worker, shard, progress)))
    except Exception as error:
        with suppress(OSError):  # the driver is gone, and with it this process in a moment
            pipe.send(("error", portable(error)))


def _orders(pipe: connection.Connection) -> Iterator[str]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def portable(error: Exception) -> Exception:
    """The exception in a form that another process can raise, its traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, CapwrightError):
        error.add_note(f"in a worker:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # exceptions of other packages may need arguments that they do not keep
        return RuntimeError(f"in a worker:\n{trace}")
    return error


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"by {name}" + (", as when memory is short" if name == "SIGKILL" else "")
    return f"with exit code {code}"
