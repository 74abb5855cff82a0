"""Where the numbers of a run go: metrics.jsonl always, TensorBoard and Weights & Biases on request.

Writes OUT/metrics.jsonl (one JSON object a line), OUT/tensorboard/ and OUT/wandb/ with the run's id
in OUT/wandb/capwright_run_id. The x-axis of all of them is samples seen. A run that goes on from a
checkpoint repeats the steps after it: metrics.jsonl forgets them, TensorBoard is told to, and wandb
keeps the first values, which are the same ones. `WANDB_MODE=offline` keeps wandb from the network.
"""

import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.core.run_folder import MetricsLog

Scalars = Mapping[str, float]


class Tracker(Protocol):
    """One place that numbers go to."""

    def write(self, samples_seen: int, values: Scalars) -> None:
        """Numbers by name, at a number of samples."""
        ...

    def close(self) -> None:
        """Wait until everything is written."""
        ...


class Trackers:
    """All places of a run; for the first process alone.

    `names` are of `config.TRACKERS`. `samples_seen` is where the run goes on. Raises CapwrightError
    for a tracker that is not installed or cannot start.
    """

    def __init__(
        self, out: Path, names: Sequence[str], plan: Mapping[str, Any], samples_seen: int
    ) -> None:
        self._open = ExitStack()
        forget(out / "metrics.jsonl", after=samples_seen)
        self._log = self._open.enter_context(MetricsLog(out / "metrics.jsonl"))
        self._others: list[Tracker] = []
        try:
            for name in names:
                tracker = _KINDS[name](out, as_dict(plan), samples_seen)
                self._open.callback(tracker.close)
                self._others.append(tracker)
        except BaseException:
            self._open.close()
            raise

    def write(self, samples_seen: int, values: Scalars) -> None:
        """Write numbers by name."""
        self._log.write(samples_seen=samples_seen, **values)
        for tracker in self._others:
            tracker.write(samples_seen, values)

    def close(self) -> None:
        """Wait until everything is written."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def forget(path: Path, *, after: int) -> None:
    """Drop lines of steps that are about to be repeated, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line)["samples_seen"] <= after:
            kept.append(line)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


class _TensorBoard:
    def __init__(self, out: Path, plan: Mapping[str, Any], samples_seen: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._writer = SummaryWriter(
            str(out / "tensorboard"), purge_step=samples_seen + 1 if samples_seen else None
        )
        text = json.dumps(plan, indent=1, ensure_ascii=False).replace("\n", "\n    ")
        self._writer.add_text("plan", f"    {text}", samples_seen)

    def write(self, samples_seen: int, values: Scalars) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, samples_seen)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, out: Path, plan: Mapping[str, Any], samples_seen: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        folder = out / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "capwright_run_id"
        if not known.exists() or not samples_seen:  # a run from the start is a new one
            with atomic_path(known) as temporary:
                temporary.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        self._wandb = wandb
        settings = wandb.Settings(
            silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True
        )
        try:
            self._run = wandb.init(
                project="capwright",
                name=out.name,
                id=known.read_text(encoding="utf-8"),
                resume="allow" if samples_seen and not _offline(wandb) else None,
                dir=str(out),
                config=dict(plan),
                settings=settings,
            )
        except wandb.errors.Error as error:
            wandb.teardown()
            raise CapwrightError(
                f"wandb cannot start ({error}): run `wandb login`, set WANDB_MODE=offline and "
                "`wandb sync` later, or leave wandb out of trackers"
            ) from error

    def write(self, samples_seen: int, values: Scalars) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._run.log({**finite, "samples_seen": samples_seen}, step=samples_seen)

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # its service is a process that would outlive a killed run


def _offline(wandb: Any) -> bool:
    return bool(wandb.setup().settings.mode == "offline")


def _missing(package: str) -> CapwrightError:
    return CapwrightError(
        f"trackers has {package!r} but the package {package} is not installed: "
        "`pip install 'capwright[track]'`, or leave it out of trackers"
    )


_KINDS: Mapping[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
}
