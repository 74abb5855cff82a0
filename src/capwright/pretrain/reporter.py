"""What a run says while it trains: the plan, a line of progress, numbers, alarms, evaluations.

Writes to stderr and, through `trackers.py`, to metrics.jsonl and where else numbers go. Only the
first process speaks; in the others every method does nothing."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from capwright.core.progress import Progress
from capwright.pretrain import plan, profiling
from capwright.pretrain.checkpoint import Position
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.plan import PlanFacts
from capwright.pretrain.task import Task
from capwright.pretrain.trackers import Trackers

Evaluator = Callable[[Path], Mapping[str, float]]  # a checkpoint -> metrics


class Reporter:
    """Speaks while a run trains from `start` on, if it `speaks` at all."""

    def __init__(
        self, config: PretrainConfig, task: Task, facts: PlanFacts, start: Position, *, speaks: bool
    ) -> None:
        self.config, self.task, self.speaks = config, task, speaks
        self._open = ExitStack()
        if not speaks:
            return
        sys.stderr.write(plan.plan_text(facts))
        self._trackers = self._open.enter_context(
            Trackers(config.out, config.trackers, config.plan(), start.samples_seen)
        )
        total = config.steps * config.batch_size
        self._progress = self._open.enter_context(
            Progress("pretrain", total, "samples", start.samples_seen)
        )

    def stepped(
        self, step: int, position: Position, values: Mapping[str, float], waited: float
    ) -> None:
        """After a step: progress, and on the steps that are logged numbers and alarms."""
        if not self.speaks:
            return
        self._progress.advance(self.config.batch_size, note=f"loss {position.loss:.3f}")
        if step % self.config.log_every_steps and step + 1 < self.config.steps:
            return
        alarms = self.task.alarms(values)
        for sentence in alarms:
            self._progress.say(f"capwright: {sentence}")
        times = {"seconds": round(position.seconds, 3), "data_seconds": waited}
        with profiling.phase("log"):
            found = {"step": step, **times, **values} | ({"alarm": 1.0} if alarms else {})
            self._trackers.write(position.samples_seen, found)

    def evaluated(
        self, evaluators: Mapping[str, Evaluator], step: int, position: Position, path: Path
    ) -> float:
        """Measure a checkpoint with every evaluator; returns the seconds that it took."""
        if not self.speaks or not evaluators:
            return 0.0
        began = time.monotonic()
        metrics: dict[str, float] = {}
        with torch.random.fork_rng():
            for name, evaluator in evaluators.items():
                metrics |= {f"{name}/{metric}": value for metric, value in evaluator(path).items()}
        spent = round(time.monotonic() - began, 3)
        found = {"step": step, "evaluation_seconds": spent, **metrics}
        self._trackers.write(position.samples_seen, found)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        in_all = position.evaluation_seconds + spent
        share = in_all / max(position.seconds + in_all, 1e-9)
        self._progress.say(f"evaluation  {shown} ({spent:.1f} s; {share:.0%} of the run so far)")
        return spent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
