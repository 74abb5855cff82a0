"""The profile's arithmetic on steps whose length is known, and on a step of real products."""

import time

import pytest
import torch

from capwright.pretrain import profiling
from capwright.pretrain.profiling import ProfileReport, phase, profile

CPU = torch.device("cpu")


def spend(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.fixture(autouse=True)
def short_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(profiling.SIDE, "cpu", 256)
    monkeypatch.setattr(profiling, "YARDSTICK_SECONDS", 0.05)


def test_phases_add_up_and_inner_ones_count_once() -> None:
    def step() -> None:
        with phase("data"):
            spend(0.004)
        with phase("forward"):
            spend(0.008)
            with phase("log"):
                spend(0.002)
        spend(0.004)
        with phase("augment"):  # a name of one's own
            spend(0.001)

    found = profile(step, 1e6, CPU, steps=5)
    assert list(found.phases) == [*profiling.PHASES, "augment", "other"]
    expected = {"data": 0.004, "forward": 0.008, "log": 0.002, "augment": 0.001, "other": 0.004}
    for name, seconds in expected.items():  # on a busy machine only longer
        assert seconds * 0.9 < found.phases[name], name
    assert found.phases["backward"] == found.phases["optimiser"] == 0
    order = sorted(expected, key=lambda name: found.phases[name])
    assert order[0] == "augment" and order[-1] == "forward"
    assert found.seconds >= 0.018


def test_a_phase_alone_does_nothing() -> None:
    with phase("data"):
        pass
    assert profiling._running.get() is None
    with pytest.raises(ValueError), phase("data"):
        raise ValueError


def test_a_step_that_fails_ends_the_profile() -> None:
    calls = []

    def step() -> None:
        calls.append(1)
        with phase("data"):
            if len(calls) > profiling.WARM_UP_STEPS + 1:
                raise ValueError

    with pytest.raises(ValueError):
        profile(step, 1.0, CPU, steps=3)
    assert profiling._running.get() is None


def test_large_products_are_the_yardstick() -> None:
    side = profiling.SIDE["cpu"]
    left, right = torch.randn(side, side), torch.randn(side, side)
    flops = 16 * 2 * side**3

    def step() -> None:
        with phase("forward"):
            for _ in range(16):
                torch.mm(left, right)

    found = profile(step, flops, CPU, steps=9, precision="fp32")
    assert 0.02 < found.ratio < 1.5  # the same products, but shared with whoever else computes here
    assert found.products == "float32"
    assert found.operators[0].name == "aten::mm" and found.operators[0].calls == 16
    half = profile(step, flops / 2, CPU, steps=9, precision="fp32")
    assert half.rate == pytest.approx(flops / 2 / half.seconds)


def test_the_text() -> None:
    report = ProfileReport(
        steps=20,
        seconds=0.5,
        flops=40e9,
        products="float32",
        product_rate=100e9,
        phases={"data": 0.01, "forward": 0.19, "backward": 0.25, "other": 0.05},
        operators=[profiling.Operator(name="aten::addmm", seconds=0.3, calls=1200)],
    )
    assert report.text().splitlines() == [
        "profile of 20 steps",
        "  a step             500.0 ms, 40 GFLOP",
        "  its rate           80 GFLOP/s",
        "  a large product    100 GFLOP/s in float32",
        "  ratio              0.80",
        "  where a step's time goes",
        "    data                                          10.0 ms   2.0%",
        "    forward                                      190.0 ms  38.0%",
        "    backward                                     250.0 ms  50.0%",
        "    other                                         50.0 ms  10.0%",
        "  the slowest operators (of the time of those shown)",
        "    aten::addmm                                  300.0 ms 100.0%    1,200 calls",
    ]
