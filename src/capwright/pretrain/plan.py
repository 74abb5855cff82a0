"""What a run is about to do, in a dozen lines for a human who is going to wait for it.

Compute and memory are measured (`step_cost`) for every set of objectives that the schedules ever
have at work together; the rest is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from capwright.core.progress import duration
from capwright.pretrain import schedule
from capwright.pretrain.batches import Batches
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import ALONE, Group
from capwright.pretrain.precision import product_type
from capwright.pretrain.step_cost import TINY, Tokens, count_tokens, measure_step, number
from capwright.pretrain.task import Task

SAMPLED = 64  # pictures of a step whose captions are looked at


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many numbers there are, and how many bytes they take."""

    image: int
    text: int
    rest: int  # of the model: logit scale, CoCa's decoder
    objectives: int  # heads, decoders and teachers
    trained: int
    bytes: int  # of all of them and of buffers
    trained_bytes: int

    @property
    def all(self) -> int:
        """Everything, trained or not."""
        return self.image + self.text + self.rest + self.objectives


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps in which the same objectives have a weight."""

    first: int
    end: int
    flops: float  # of a step, all processes
    kept: float  # bytes that a process keeps for the backward pass


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """What `plan_text` says."""

    config: PretrainConfig
    parameters: Parameters
    pictures: int  # of a pass
    left_out: int  # without a caption
    mixture: Sequence[str]  # lines of `CaptionSampler.tree`
    tokens: Tokens
    stretches: Sequence[Stretch]
    device: str
    products: str  # their type
    ranks: int
    samples_seen: int = 0
    seconds: float = 0.0  # that they took
    evaluators: Sequence[str] = ()

    @property
    def flops(self) -> float:
        """Of all steps."""
        return sum(stretch.flops * (stretch.end - stretch.first) for stretch in self.stretches)


def facts(
    config: PretrainConfig,
    task: Task,
    batches: Batches,
    *,
    device: torch.device,
    group: Group = ALONE,
    samples_seen: int = 0,
    seconds: float = 0.0,
    evaluators: Sequence[str] = (),
) -> PlanFacts:
    """Count and measure. Call it before the task is wrapped for many processes.

    Nothing that trains is touched: a copy of the task does the work, torch's random state is kept.
    """
    stretches, tokens, parts = [], None, config.accumulation
    share = config.batch_size // group.world
    for first, end in active_stretches(config):
        batch = batches.first((first + end) // 2, SAMPLED).to(device)
        if tokens is None:
            tokens = count_tokens(task.model, batch.tokens_UL)
            captions = round(tokens.captions * share / batch.pictures)
            tokens = replace(tokens, captions=captions)
        cost = measure_step(task, batch, share / parts, config.precision, device)
        passes = cost.forward + cost.backward + (cost.forward if parts > 1 else 0)
        stretches.append(
            Stretch(first=first, end=end, flops=passes * parts * group.world, kept=cost.kept)
        )
    assert tokens is not None, "a run has steps"
    sampler = batches.sampler
    return PlanFacts(
        config=config,
        parameters=count_parameters(task),
        pictures=len(sampler.rows),
        left_out=sampler.without_caption,
        mixture=sampler.tree(samples_seen / (config.steps * config.batch_size)),
        tokens=tokens,
        stretches=stretches,
        device=_device_name(device),
        products=str(product_type(config.precision, device)).removeprefix("torch."),
        ranks=group.world,
        samples_seen=samples_seen,
        seconds=seconds,
        evaluators=tuple(evaluators),
    )


def count_parameters(task: Task) -> Parameters:
    """Count them by where they are."""
    model: Any = task.model
    count = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in (("image", model.visual), ("text", model.text), ("model", model))
    }
    own = list(task.parameters())
    trained = [p for p in own if p.requires_grad]
    return Parameters(
        image=count["image"],
        text=count["text"],
        rest=count["model"] - count["image"] - count["text"],
        objectives=sum(p.numel() for p in task.objectives.parameters()),
        trained=sum(p.numel() for p in trained),
        bytes=sum(t.nbytes for t in [*own, *task.buffers()]),
        trained_bytes=sum(p.nbytes for p in trained),
    )


def active_stretches(config: PretrainConfig) -> list[tuple[int, int]]:
    """(first step, step after the last) of the stretches in which the same objectives train."""
    shares = {share for w in config.weights.values() for share, _ in schedule.points(w)}
    edges = sorted({0, config.steps, *(-int(-share * config.steps // 1) for share in shares)})
    found: list[tuple[int, int]] = []
    names: set[str] = set()
    for first, end in pairwise(edges):
        now = set(config.active((first + end) // 2))
        if found and now == names:
            found[-1] = (found[-1][0], end)
        elif now:
            found.append((first, end))
        names = now
    return found


def plan_text(facts: PlanFacts) -> str:
    """The plan in some twelve lines."""
    rows = {
        "model": _model(facts),
        "samples": _samples(facts),
        "tokens": _tokens(facts),
        "objectives": _objectives(facts.config),
        "compute": _compute(facts),
        "memory": _memory(facts),
        "runs on": _runs_on(facts),
        "time left": _time_left(facts),
        "saves": _saves(facts),
    }
    lines = [f"pretrain {facts.config.out}", *(f"  {k:<11}{v}" for k, v in rows.items())]
    return "\n".join([*lines, *(f"  {line}" for line in facts.mixture)]) + "\n"


def _model(facts: PlanFacts) -> str:
    found, config = facts.parameters, facts.config
    name = config.model if isinstance(config.model, str) else "of a configuration"
    begins = f" from {config.init}" if config.init else ""
    parts = {
        "image tower": found.image,
        "text tower": found.text,
        "decoder": found.rest if found.rest > 2 else 0,  # else the scale and the bias
        "objectives": found.objectives,
    }
    listed = " + ".join(f"{number(n)} {what}" for what, n in parts.items() if n)
    frozen = found.all - found.trained
    return (
        f"{name}{begins} · {number(found.all)} parameters = {listed}"
        f"{f' · {number(frozen)} of them do not train' if frozen else ''}"
    )


def _samples(facts: PlanFacts) -> str:
    config, pictures = facts.config, facts.pictures
    total = config.steps * config.batch_size
    seen = f" · {facts.samples_seen:,} are seen" if facts.samples_seen else ""
    left_out = f" ({facts.left_out:,} have no caption)" if facts.left_out else ""
    return (
        f"{total:,} = {config.steps:,} steps of {config.batch_size:,} · "
        f"{total / max(pictures, 1):.1f} passes over {pictures:,} pictures{left_out}{seen}"
    )


def _tokens(facts: PlanFacts) -> str:
    found = facts.tokens
    if not found.captions:
        return "no captions are read"
    captions = found.captions * facts.ranks
    return (
        f"{found.mean:.1f} a caption, {number(captions * found.mean)} a step · "
        f"{number(captions * found.computed)} computed of {number(captions * found.context)} "
        f"(context {found.context})"
    )


def _objectives(config: PretrainConfig) -> str:
    return " · ".join(f"{n} × {schedule.as_text(w)}" for n, w in config.weights.items())


def _compute(facts: PlanFacts) -> str:
    flops = [stretch.flops for stretch in facts.stretches]
    low, high = f"{number(min(flops))}FLOP", f"{number(max(flops))}FLOP"
    step = low if low == high else f"{low} to {high}"
    return f"{step} a step · {number(facts.flops)}FLOP in all (measured on a batch of {TINY})"


def _memory(facts: PlanFacts) -> str:
    found, config = facts.parameters, facts.config
    shards = facts.ranks if config.parallel == "fsdp" else 1
    own = found.image + found.text + found.rest
    parts = {
        "weights": found.bytes / shards,
        "gradients": found.trained_bytes / shards,
        "optimiser": 2 * found.trained_bytes / shards,
        "averaged weights": 4 * own / shards if config.ema else 0,
        "activations": max(stretch.kept for stretch in facts.stretches),
    }
    listed = " + ".join(f"{size(value)} {name}" for name, value in parts.items() if value)
    each = " a process" if facts.ranks > 1 else ""
    return f"about {size(sum(parts.values()))}{each} = {listed}"


def _runs_on(facts: PlanFacts) -> str:
    config = facts.config
    ranks = f"{facts.ranks} processes ({config.parallel})" if facts.ranks > 1 else "one process"
    parts = [facts.device, facts.products, ranks]
    if config.accumulation > 1:
        parts.append(f"each step in {config.accumulation} parts")
    options = {"activations computed twice": config.grad_checkpointing, "compiled": config.compile}
    return " · ".join([*parts, *(name for name, on in options.items() if on)])


def _time_left(facts: PlanFacts) -> str:
    if not facts.samples_seen or not facts.seconds:
        return "unknown until the first steps"
    left = facts.config.steps * facts.config.batch_size - facts.samples_seen
    seconds = left * facts.seconds / facts.samples_seen
    return f"{duration(seconds)} at the pace so far, without evaluations"


def _saves(facts: PlanFacts) -> str:
    config = facts.config
    kept = f"the newest {config.keep_checkpoints} stay" if config.keep_checkpoints else "all stay"
    measured = f" · each measured by {', '.join(facts.evaluators)}" if facts.evaluators else ""
    logs = ", ".join(["metrics.jsonl", *config.trackers])
    return f"a checkpoint every {config.checkpoint_samples:,} samples, {kept}{measured} · {logs}"


def size(value: float) -> str:
    """Bytes as `340 MB` or `1.2 GB`."""
    return f"{number(value)}B"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {torch.get_num_threads()} threads"
