"""How fast a step is, against what this device can do, and where its time goes.

The yardstick is the rate of one large matrix product in the types and with the threads of the step;
the rate of the step is its counted operations (`step_cost`) by its measured seconds. The ratio of
both is what a step makes of the device; the rest is small products, memory traffic, norms and
Python. `with phase("forward"):` marks a part of a step, and does nothing unless a profile is being
made. Operators are named by torch.profiler in a few steps of their own, which count for
nothing else, since watching them costs time.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from statistics import median

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as watch

from capwright.pretrain.precision import Precision, product_type
from capwright.pretrain.step_cost import number

PHASES = ("data", "forward", "backward", "optimiser", "log")
WARM_UP_STEPS = 2
WATCHED_STEPS = 3  # of torch.profiler, at most
SHOWN_OPERATORS = 8
YARDSTICK_SECONDS = 1.0  # of its products, before and after the steps
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices of the yardstick


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What one kind of operation took, per step."""

    name: str
    seconds: float
    calls: float


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """What was measured; times are per step."""

    steps: int
    seconds: float  # the median
    flops: float  # counted
    products: str  # the type that was multiplied
    product_rate: float  # FLOP/s of a large product
    phases: Mapping[str, float]  # seconds; "other" is what no phase claims
    operators: Sequence[Operator]  # those that took longest, watched

    @property
    def rate(self) -> float:
        """FLOP/s of a step."""
        return self.flops / self.seconds

    @property
    def ratio(self) -> float:
        """Of the step's rate to that of a large product."""
        return self.rate / self.product_rate

    def text(self) -> str:
        """A few lines for a terminal."""
        lines = [
            f"profile of {self.steps} steps",
            f"  a step             {1000 * self.seconds:,.1f} ms, {number(self.flops)}FLOP",
            f"  its rate           {number(self.rate)}FLOP/s",
            f"  a large product    {number(self.product_rate)}FLOP/s in {self.products}",
            f"  ratio              {self.ratio:.2f}",
            "  where a step's time goes",
        ]
        total = sum(self.phases.values())
        lines += [_row(name, spent, total) for name, spent in self.phases.items()]
        watched = sum(operator.seconds for operator in self.operators)
        if watched:
            lines.append("  the slowest operators (of the time of those shown)")
        lines += [
            f"{_row(o.name, o.seconds, watched)}  {o.calls:7,.0f} calls" for o in self.operators
        ]
        return "\n".join(lines) + "\n"


def _row(name: str, seconds: float, total: float) -> str:
    return f"    {name[:40]:<40}{1000 * seconds:10,.1f} ms {seconds / max(total, 1e-12):6.1%}"


@dataclass
class _Clock:
    """Seconds by phase; a phase inside another one is not counted twice."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    def turn(self) -> None:
        """Give the time since the last turn to the innermost phase."""
        synchronise(self.device)
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.turn()
        self._open.append(name)
        try:
            yield
        finally:
            self.turn()
            self._open.pop()


_running: ContextVar[_Clock | None] = ContextVar("running clock", default=None)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What the block does, one of PHASES; it is timed while a profile is under way."""
    clock = _running.get()
    if clock is None:
        yield
        return
    with clock.phase(name):
        yield


def profile(
    step: Callable[[], object],
    flops_per_step: float,
    device: torch.device,
    steps: int,
    precision: Precision = "auto",
) -> ProfileReport:
    """Take `steps` steps and a few more; `step` marks its phases."""
    kind = product_type(precision, device)
    before = product_rate(device, kind)
    for _ in range(WARM_UP_STEPS):
        step()
    clock, times = _Clock(device), []
    token = _running.set(clock)
    try:
        for _ in range(steps):
            synchronise(device)
            began = time.perf_counter()
            step()
            synchronise(device)
            times.append(time.perf_counter() - began)
    finally:
        _running.reset(token)
    phases = {name: clock.seconds.get(name, 0.0) / steps for name in PHASES}
    phases |= {name: spent / steps for name, spent in clock.seconds.items() if name not in phases}
    phases["other"] = max(0.0, sum(times) / steps - sum(phases.values()))
    return ProfileReport(
        steps=steps,
        seconds=median(times),
        flops=flops_per_step,
        products=str(kind).removeprefix("torch."),
        product_rate=max(before, product_rate(device, kind)),
        phases=phases,
        operators=slowest_operators(step, device, min(steps, WATCHED_STEPS)),
    )


def slowest_operators(
    step: Callable[[], object], device: torch.device, steps: int
) -> list[Operator]:
    """Watch a few steps; the operators by the time that they took themselves."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with watch(activities=activities, acc_events=True) as watched:
        for _ in range(steps):
            step()
        synchronise(device)
    found = [
        Operator(
            name=event.key,
            seconds=(event.self_device_time_total if on_gpu else event.self_cpu_time_total)
            / 1e6
            / steps,
            calls=event.count / steps,
        )
        for event in watched.key_averages()
    ]
    return sorted(found, key=lambda o: -o.seconds)[:SHOWN_OPERATORS]


def product_rate(device: torch.device, kind: torch.dtype) -> float:
    """FLOP/s of the best of the square products that fit into the time; at least three."""
    side = SIDE.get(device.type, 2048)
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    product = left @ right
    best, times, began = float("inf"), 0, time.perf_counter()
    while times < 3 or time.perf_counter() - began < YARDSTICK_SECONDS:
        synchronise(device)
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        synchronise(device)
        best, times = min(best, time.perf_counter() - start), times + 1
    return 2 * side**3 / best


def synchronise(device: torch.device) -> None:
    """Wait for the device; on a processor nothing is ever pending."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
