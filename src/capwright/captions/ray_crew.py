"""The crew of a stage on a Ray cluster: one actor a worker, with the GPUs that it asks for.

Ray is joined at `ray_address`, or started on this machine for the run. The work folder must be on
a file system that all nodes share: actors read the index there and write sidecars to it, and Ray
carries names of shards and counts alone.
"""

import contextlib
import logging
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from capwright.captions.engines import TICK_S, News, portable
from capwright.captions.runner import CaptionShard, Job, Running, ShardProgress
from capwright.core.errors import CapwrightError
from capwright.core.run_folder import holder

STORE_BYTES = 100 * 2**20  # nothing large passes through it
CONNECT_S = 10.0
SIGHT_S = 10.0  # a network file system may show a new file a little later


class RayCrew:
    """A crew of Ray actors."""

    def __init__(self, job: Job, workers: int, running: Running) -> None:
        self._job, self._workers, self._running = job, workers, running
        self._next = 0
        self._members: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}  # reference of a call under way to its worker
        self._busy: set[int] = set()  # workers that have a shard
        self._steps: dict[int, Any] = {}  # the question for progress that is open
        self._asked = 0.0

    def __enter__(self) -> Self:
        ray = _ray()
        self._ours = not ray.is_initialized()
        if self._ours:
            _join(self._running, self._workers)
        options = {"num_cpus": 1, "num_gpus": self._running.gpus_per_worker}
        self._actor = ray.remote(
            **options, scheduling_strategy="SPREAD", concurrency_groups={"watch": 1}
        )(_Actor)
        return self

    def hire(self) -> None:
        actor = self._actor.remote(self._job, Path.cwd())
        self._members[self._next] = actor
        self._calls[actor.start.remote()] = self._next
        self._next += 1

    def give(self, worker: int, shard: str) -> None:
        self._busy.add(worker)
        self._calls[self._members[worker].finish.remote(shard)] = worker

    def news(self) -> Iterator[tuple[int, News]]:
        import ray

        calls = list(self._calls)
        ray.wait(calls, timeout=TICK_S)
        for call in ray.wait(calls, num_returns=len(calls), timeout=0)[0]:
            worker = self._calls.pop(call)
            self._busy.discard(worker)
            self._steps.pop(worker, None)  # its answer would be of a shard that is done
            try:
                yield worker, ray.get(call)
            except ray.exceptions.RayError as error:
                ray.kill(self._members.pop(worker))
                yield worker, ("died", _how(error))
        for worker, step in list(self._steps.items()):
            if ray.wait([step], timeout=0)[0]:
                del self._steps[worker]
                with contextlib.suppress(ray.exceptions.RayError):  # its call says so too
                    yield worker, ("step", ray.get(step))
        self._ask()

    def _ask(self) -> None:
        if time.monotonic() - self._asked >= TICK_S:
            self._asked = time.monotonic()
            for worker in self._busy - self._steps.keys():
                self._steps[worker] = self._members[worker].progress.remote()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import ray

        for actor in self._members.values():
            ray.kill(actor)
        if self._ours:
            ray.shutdown()


class _Actor:
    """A worker on some node; every answer is news for the driver."""

    def __init__(self, job: Job, folder: Path) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)  # relative paths mean what they mean to the driver
        self._job = job
        self._so_far = ShardProgress()
        self._worker: CaptionShard | None = None

    def start(self) -> News:
        """Make the captioner."""
        try:
            _check_sight(self._job)
            self._worker = self._job.make()
        except Exception as error:
            return "error", portable(error)
        return "ready", None

    def finish(self, shard: str) -> News:
        """Write the shard's sidecar."""
        assert self._worker is not None
        self._so_far = ShardProgress()
        try:
            return "done", self._job.finish(self._worker, shard, ShardProgress(show=self._show))
        except Exception as error:
            return "error", portable(error)

    def progress(self) -> ShardProgress:
        """How far the shard is."""
        return self._so_far

    def _show(self, now: ShardProgress) -> None:
        self._so_far = now.counts()


def _check_sight(job: Job) -> None:
    patience = time.monotonic() + SIGHT_S
    while holder(job.folder) != job.held_by:
        if time.monotonic() > patience:
            raise CapwrightError(
                f"the node {platform.node()} does not see {job.folder} as the driver does: "
                "put the work folder on a file system that all nodes of the Ray cluster share"
            )
        time.sleep(0.5)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise CapwrightError(
            "the engine ray needs Ray: run pip install 'capwright[ray]', or choose the engine local"
        ) from None
    return ray


def _join(running: Running, workers: int) -> None:
    """Join the cluster, or start one on this machine."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # else a cluster on this machine says each time that it asks for a token, as it should
    logging.getLogger("ray._private.authentication").setLevel("ERROR")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if running.ray_address:
            _check_reachable(running.ray_address)
            ray.init(address=running.ray_address, logging_level="warning")
            return
        ray.init(
            num_cpus=max(workers, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            logging_level="warning",
        )
    except (OSError, ValueError, RuntimeError) as error:
        ray.shutdown()
        raise _no_cluster(running.ray_address, error) from error
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own, which exits with 15
    gpus = ray.cluster_resources().get("GPU", 0)
    if gpus < running.gpus_per_worker:
        ray.shutdown()
        raise CapwrightError(
            f"gpus_per_worker is {running.gpus_per_worker:g}, but this machine has {gpus:g} GPUs: "
            "lower it, or join a cluster that has them with ray_address"
        )


def _check_reachable(address: str) -> None:
    """Raise OSError at once where nothing listens; Ray would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _no_cluster(address: str, error: Exception) -> CapwrightError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if not address:
        return CapwrightError(
            f"cannot start Ray on this machine ({reason}): join a cluster with ray_address, or "
            "choose the engine local"
        )
    return CapwrightError(
        f"cannot join Ray at {address!r} ({reason}): start a cluster there with `ray start "
        "--head`, or leave out ray_address to start Ray on this machine for the run"
    )


def _how(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"in Ray ({type(error).__name__}: {lines[0] if lines else 'no reason given'})"
