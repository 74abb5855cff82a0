"""The training loop: samples in order, one task, checkpoints, exact continuation.

Reads WORK/index and caption sidecars. Writes OUT/manifest.json (the plan), OUT/tokenizer/,
OUT/metrics.jsonl, OUT/checkpoints/ and, when finished, OUT/summary.json.
Run: `capwright pretrain RECIPE`, or `torchrun -m capwright pretrain RECIPE` for many processes.

It counts samples. A batch is a function of the step, torch's generator is seeded at every step, and
a checkpoint holds the rest, so a killed run that is started again ends with the same weights, bit
for bit (same machine, same number of threads).
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json, write_json
from capwright.core.progress import Progress
from capwright.core.run_folder import MetricsLog
from capwright.pretrain import checkpoint, distributed
from capwright.pretrain.batches import Batch
from capwright.pretrain.checkpoint import Position
from capwright.pretrain.config import PretrainConfig, PretrainSummary
from capwright.pretrain.distributed import Group
from capwright.pretrain.draws import step_seed
from capwright.pretrain.optimizer import build_optimizer, learning_rate
from capwright.pretrain.precision import arithmetic
from capwright.pretrain.prepare import Prepared, claim_inputs, prepare

MAX_LOGIT_SCALE = math.log(100)  # as in CLIP: a larger scale makes training unstable


def run(config: PretrainConfig) -> PretrainSummary:
    """Train, or go on where the last run of the same plan ended; a finished run is not repeated.

    Raises CapwrightError for a folder with another plan, missing captions, a batch that the
    processes cannot share, or a loss that is not finite.
    """
    config.check_together()
    with distributed.join() as group:
        if config.batch_size % group.world:
            raise CapwrightError(
                f"batch_size {config.batch_size} cannot be shared by {group.world} processes: "
                "choose a multiple of their number"
            )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.set_flush_denormal(True)  # tiny moments of Adam would slow the processor down
        index, sampler = claim_inputs(config, group)
        finished = config.out / "summary.json"
        if finished.exists():
            return _read_summary(config.out)
        prepared = prepare(config, index, sampler, group)
        optimizer = build_optimizer(prepared.task, config)
        start = _resume(config, prepared, optimizer)
        if group.leads:
            sys.stderr.write(prepared.plan_text(start.samples_seen))
            _forget_metrics(config.out / "metrics.jsonl", after=start.samples_seen)
        position = _train(config, prepared, optimizer, start, group)
        if group.leads:
            rate = position.samples_seen / max(position.seconds, 1e-9)
            values = {**vars(position), "samples_per_second": rate}
            write_json(finished, values)
        distributed.barrier(group)
        return _read_summary(config.out)


def _train(
    config: PretrainConfig,
    prepared: Prepared,
    optimizer: torch.optim.Optimizer,
    start: Position,
    group: Group,
) -> Position:
    task, total = prepared.task.train(), config.steps * config.batch_size
    parameters = [p for p in task.parameters() if p.requires_grad]
    position, began = start, time.monotonic() - start.seconds
    with ExitStack() as stack:
        if group.leads:
            log = stack.enter_context(MetricsLog(config.out / "metrics.jsonl"))
            progress = stack.enter_context(
                Progress("pretrain", total, "samples", start.samples_seen)
            )
        for step, batch in _batches(config, prepared, start):
            torch.manual_seed(step_seed(config.seed, step, group.rank))
            seen = (step + 1) * config.batch_size
            for settings in optimizer.param_groups:
                settings["lr"] = learning_rate(config, seen - config.batch_size / 2)
            values = _step(config, prepared, batch, parameters, optimizer, group)
            if not math.isfinite(values["loss"]):
                raise _not_finite(
                    values["loss"], step, seen, prepared.keys(batch.sample_ids_B[:5].tolist())
                )
            seconds = time.monotonic() - began
            position = Position(samples_seen=seen, seconds=seconds, loss=values["loss"])
            if group.leads:
                progress.advance(config.batch_size, note=f"loss {values['loss']:.3f}")
                if step % config.log_every_steps == 0 or seen == total:
                    log.write(step=step, samples_seen=seen, seconds=round(seconds, 3), **values)
            if seen == total or seen // config.checkpoint_samples > (
                (seen - config.batch_size) // config.checkpoint_samples
            ):
                _save(config, prepared, optimizer, position, group)
    return position


def _step(
    config: PretrainConfig,
    prepared: Prepared,
    batch: Batch,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    group: Group,
) -> dict[str, float]:
    """One optimiser step; returns the losses of the global batch and what goes with them."""
    task = prepared.task
    with arithmetic(config.precision, prepared.device):
        losses = task(batch.to(prepared.device), group)
    losses["loss"].backward()
    distributed.average_gradients(parameters, group)
    norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf)
    values = {name: float(distributed.average(loss, group)) for name, loss in losses.items()}
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    scale = task.model.logit_scale
    with torch.no_grad():
        scale.clamp_(0, MAX_LOGIT_SCALE)
    return {
        **values,
        "grad_norm": float(norm),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "logit_scale": float(scale.detach().exp()),
    }


def _batches(
    config: PretrainConfig, prepared: Prepared, start: Position
) -> Iterator[tuple[int, Batch]]:
    steps = range(start.samples_seen // config.batch_size, config.steps)
    if not config.loader_workers:
        return ((step, prepared.batches[step]) for step in steps)
    loader = DataLoader(
        prepared.batches,
        sampler=steps,
        batch_size=None,
        num_workers=config.loader_workers,
        pin_memory=prepared.device.type == "cuda",
    )
    return zip(steps, loader, strict=True)


def _resume(
    config: PretrainConfig, prepared: Prepared, optimizer: torch.optim.Optimizer
) -> Position:
    found = checkpoint.find(config.out / "checkpoints")
    if not found:
        return Position()
    if config.resume == "never":
        raise CapwrightError(
            f"{config.out} has the checkpoint {found[-1].name} and resume is 'never': "
            "choose another folder, delete this one, or go on with resume=auto"
        )
    return checkpoint.read(found[-1], task=prepared.task, optimizer=optimizer)


def _save(
    config: PretrainConfig,
    prepared: Prepared,
    optimizer: torch.optim.Optimizer,
    position: Position,
    group: Group,
) -> None:
    if group.leads:
        checkpoint.write(
            config.out / "checkpoints",
            task=prepared.task,
            model_config=prepared.model_config,
            tokenizer_folder=prepared.tokenizer_folder,
            optimizer=optimizer,
            position=position,
        )
    distributed.barrier(group)


def _forget_metrics(path: Path, *, after: int) -> None:
    """Drop lines of steps that are about to be repeated, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line)["samples_seen"] <= after:
            kept.append(line)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _not_finite(loss: float, step: int, seen: int, keys: Sequence[str]) -> CapwrightError:
    return CapwrightError(
        f"the loss is {loss} at step {step} ({seen:,} samples seen; first samples of the batch: "
        f"{', '.join(keys)}): lower learning_rate, set precision=fp32, or look at these samples; "
        "the checkpoints before it are good"
    )


def _read_summary(out: Path) -> PretrainSummary:
    values = read_json(out / "summary.json")
    return PretrainSummary(
        checkpoint=checkpoint.find(out / "checkpoints")[-1],
        samples_seen=values["samples_seen"],
        seconds=values["seconds"],
        final_loss=values["loss"],
        samples_per_second=values["samples_per_second"],
    )
