"""The training loop: samples in order, one task, checkpoints, exact continuation.

Reads WORK/index and caption sidecars. Writes OUT/manifest.json (the plan), OUT/tokenizer/,
OUT/metrics.jsonl, OUT/checkpoints/ and, when finished, OUT/summary.json.
Run: `capwright pretrain RECIPE`, or `torchrun -m capwright pretrain RECIPE` for many processes.

It counts samples. A batch is a function of the step, torch's generator is seeded at every step, and
a checkpoint holds the rest, so a killed run that is started again ends with the same weights, bit
for bit (same machine, same number of threads); with another number of processes it sees the same
samples and captions in the same order.
"""

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.core.files import read_json, write_json
from capwright.pretrain import checkpoint, distributed, guard, parallel, plan, profiling, signals
from capwright.pretrain.batch import Batch
from capwright.pretrain.checkpoint import Position, Training
from capwright.pretrain.config import PretrainConfig, PretrainSummary
from capwright.pretrain.distributed import Group
from capwright.pretrain.ema import AveragedWeights
from capwright.pretrain.loading import in_steps
from capwright.pretrain.optimizer import build_optimizer, learning_rate
from capwright.pretrain.prepare import Prepared, claim_inputs, prepare
from capwright.pretrain.reporter import Evaluator, Reporter
from capwright.pretrain.step import Stepper, scaler_for

MAX_LOGIT_SCALE = math.log(100)  # as in CLIP: a larger scale makes training unstable


def run(
    config: PretrainConfig, evaluators: Mapping[str, Evaluator] | None = None
) -> PretrainSummary:
    """Train, or go on where the last run of the same plan ended; a finished run is not repeated.

    `evaluators` measure every checkpoint, by name, in the first process. Raises CapwrightError for
    a folder with another plan, missing captions, a batch that the processes cannot share, or a loss
    or gradient that is not finite; `signals.Stopped` after SIGTERM.
    """
    config.check_together()
    with distributed.join() as group:
        _check_shares(config, group.world)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.set_flush_denormal(True)  # tiny moments of Adam would slow the processor down
        index, sampler = claim_inputs(config, group)
        finished = config.out / "summary.json"
        if finished.exists():
            return _read_summary(config.out)
        run = _Run(config, prepare(config, index, sampler, group), group, evaluators or {})
        position = run.train()
        if group.leads:
            rate = position.samples_seen / max(position.seconds, 1e-9)
            flops = run.facts.flops
            write_json(finished, {**vars(position), "samples_per_second": rate, "flops": flops})
        distributed.barrier(group)
        return _read_summary(config.out)


def profile(config: PretrainConfig, steps: int) -> str:
    """Where the time of so many steps goes, as text; nothing is kept of what they train.

    Raises CapwrightError as `run` does.
    """
    config.check_together()
    _check_shares(config, distributed.ALONE.world)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    index, sampler = claim_inputs(config, distributed.ALONE)
    run = _Run(config, prepare(config, index, sampler, distributed.ALONE), distributed.ALONE, {})
    run.task.train()
    batches = itertools.cycle(run._batches(Position()))

    def step() -> None:
        number, batch, _ = next(batches)
        run._step(number, batch, stop=False)

    report = profiling.profile(
        step, run.facts.stretches[0].flops, run.prepared.device, steps, config.precision
    )
    return report.text()


def _check_shares(config: PretrainConfig, world: int) -> None:
    """Raise CapwrightError for a batch that processes or their parts cannot share."""
    if config.batch_size % world:
        raise CapwrightError(
            f"batch_size {config.batch_size} cannot be shared by {world} processes: "
            "choose a multiple of their number"
        )
    share = config.batch_size // world
    if config.accumulation > share:
        raise CapwrightError(
            f"accumulation {config.accumulation} is more than the {share} pictures of a process "
            f"(batch_size {config.batch_size} over {world}): every part needs one, so lower "
            "accumulation or raise batch_size"
        )


class _Run:
    """A run in one process: what trains, and the loop over steps."""

    def __init__(
        self,
        config: PretrainConfig,
        prepared: Prepared,
        group: Group,
        evaluators: Mapping[str, Evaluator],
    ) -> None:
        self.config, self.prepared, self.group = config, prepared, group
        self.evaluators = evaluators
        self.task = prepared.task
        self.facts = plan.facts(  # counted on the whole task, before it is cut in shards
            config,
            self.task,
            prepared.batches,
            device=prepared.device,
            group=group,
            evaluators=tuple(evaluators),
        )
        wrapped = parallel.wrap(
            self.task, config.parallel, group, all_used=prepared.all_parameters_used
        )
        optimizer = build_optimizer(self.task, config)
        scaler = scaler_for(config.precision, prepared.device)
        average = AveragedWeights(self.task.model, config.ema) if config.ema else None
        self.training = Training(
            task=self.task, optimizer=optimizer, scaler=scaler, average=average
        )
        self.stepper = Stepper(
            task=wrapped,
            optimizer=optimizer,
            parameters=[p for p in self.task.parameters() if p.requires_grad],
            group=group,
            device=prepared.device,
            precision=config.precision,
            parts=config.accumulation,
            grad_clip=config.grad_clip,
            seed=config.seed,
            scaler=scaler,
        )

    def train(self) -> Position:
        """Go through the steps that are left; returns the last position."""
        config, total = self.config, self.config.steps * self.config.batch_size
        start = position = self._resume()
        facts = replace(self.facts, samples_seen=start.samples_seen, seconds=start.seconds)
        began = time.monotonic() - start.seconds
        self.task.train()
        with (
            signals.watch() as asked,
            Reporter(config, self.task, facts, start, speaks=self.group.leads) as reporter,
        ):
            for step, batch, waited in self._batches(start):
                values = self._step(step, batch, stop=bool(asked))
                stop = values.pop("asked to stop") > 0
                position = replace(
                    position,
                    samples_seen=(step + 1) * config.batch_size,
                    seconds=time.monotonic() - began,
                    loss=values["loss"],
                )
                reporter.stepped(step, position, values, waited)
                ended = position.samples_seen == total
                if not (stop or ended or self._due(position.samples_seen)):
                    continue
                path = self._save(position)
                if stop and not ended:
                    raise signals.Stopped(position.samples_seen, path.name)
                spent = reporter.evaluated(self.evaluators, step, position, path)
                began += spent
                in_all = position.evaluation_seconds + spent
                position = replace(position, evaluation_seconds=in_all)
                distributed.barrier(self.group)
        return position

    def _step(self, step: int, batch: Batch, *, stop: bool) -> dict[str, float]:
        """One optimiser step; returns the global batch's losses and what goes with them."""
        config, stepper, optimizer = self.config, self.stepper, self.training.optimizer
        rate = learning_rate(config, step * config.batch_size)
        for settings in optimizer.param_groups:
            settings["lr"] = rate
        batch = batch.to(self.prepared.device)
        found: dict[str, Tensor] = stepper.backward(batch)
        found["asked to stop"] = torch.tensor(float(stop), device=self.prepared.device)
        values = distributed.averages(found, self.group)
        good = math.isfinite(values["loss"])
        if good:
            with profiling.phase("optimiser"):
                norm = values["grad_norm"] = stepper.update()
            good = math.isfinite(norm) or config.precision == "fp16"  # whose scaler skips the step
        if not good:
            raise guard.stop(
                config.out, self.task, batch, values,
                precision=config.precision, group=self.group, keys=self.prepared.keys,
            )  # fmt: skip
        scale = self.task.model.logit_scale
        with torch.no_grad():
            scale.clamp_(0, MAX_LOGIT_SCALE)
        self.task.after_step(step)
        if self.training.average is not None:
            self.training.average.update(step)
        return {**values, "learning_rate": rate, "logit_scale": float(scale.detach().exp())}

    def _batches(self, start: Position) -> Iterator[tuple[int, Batch, float]]:
        """(step, batch, seconds that were waited for it)."""
        config, pinned = self.config, self.prepared.device.type == "cuda"
        steps = range(start.samples_seen // config.batch_size, config.steps)
        source = in_steps(self.prepared.batches, steps, config.loader_workers, pin_memory=pinned)
        for _ in steps:
            began = time.monotonic()
            with profiling.phase("data"):
                step, batch = next(source)
            yield step, batch, round(time.monotonic() - began, 4)

    def _due(self, seen: int) -> bool:
        every, before = self.config.checkpoint_samples, seen - self.config.batch_size
        return seen // every > before // every

    def _resume(self) -> Position:
        found = checkpoint.find(self.config.out / "checkpoints")
        if not found:
            return Position()
        if self.config.resume == "never":
            raise CapwrightError(
                f"{self.config.out} has the checkpoint {found[-1].name} and resume is 'never': "
                "choose another folder, delete this one, or go on with resume=auto"
            )
        return checkpoint.read(found[-1], self.training)

    def _save(self, position: Position) -> Path:
        state = self.training.gather()
        folder = self.config.out / "checkpoints"
        if self.group.leads:
            checkpoint.write(
                folder,
                state,
                position,
                model_config=self.prepared.model_config,
                preprocess=self.prepared.preprocess,
                tokenizer_folder=self.prepared.tokenizer_folder,
                kept=self.config.keep_checkpoints,
            )
        distributed.barrier(self.group)
        return checkpoint.find(folder)[-1]


def _read_summary(out: Path) -> PretrainSummary:
    values = read_json(out / "summary.json")
    return PretrainSummary(
        checkpoint=checkpoint.find(out / "checkpoints")[-1],
        samples_seen=values["samples_seen"],
        seconds=values["seconds"],
        final_loss=values["loss"],
        samples_per_second=values["samples_per_second"],
        evaluation_seconds=values["evaluation_seconds"],
        flops=values["flops"],
    )
