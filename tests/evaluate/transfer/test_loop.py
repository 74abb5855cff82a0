"""The loop: what a step sees, how fast it learns, and that a broken run ends as an unbroken one."""

import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import LabelledSet
from capwright.dense.backbone import load_backbone
from capwright.evaluate.transfer.loop import (
    STATE,
    Batches,
    Schedule,
    fit,
    parameter_groups,
)
from capwright.pretrain.loading import in_steps
from capwright.pretrain.signals import Stopped

SCHEDULE = Schedule(steps=8, batch=3, learning_rate=0.05, warmup_steps=2)


class Numbers:
    """Items are their numbers; it pickles."""

    def __call__(self, index: int) -> int:
        if index == 9:
            raise CapwrightError("item 9 is broken: mend it")
        return index


def numbers(count: int = 7) -> LabelledSet[int]:
    return LabelledSet(name="numbers", keys=tuple(map(str, range(count))), read=Numbers())


class Line:
    """Learns a line through noise of its own; sees what it is given."""

    def __init__(self, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(
            nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1)
        )
        self.seen: list[list[Any]] = []
        self.draws: list[float] = []
        self.stop_at = stop_at

    def loss(self, items: Sequence[Any], draws: np.random.Generator) -> Tensor:
        self.seen.append(list(items))
        self.draws.append(draws.random())
        if len(self.seen) == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.tensor([[float(item), self.draws[-1]] for item in items])
        loss: Tensor = ((self.module(x) - x[:, :1]) ** 2).mean()
        return loss


def learned(learner: Line, folder: Path, **changes: Any) -> dict[str, Tensor]:
    options: dict[str, Any] = {"seed": 1, "precision": "fp32", "save_every": 100} | changes
    schedule = options.pop("schedule", SCHEDULE)
    fit(learner, numbers(), options.pop("items", range(7)), schedule, folder=folder, **options)
    return learner.module.state_dict()


def double(item: int, draws: np.random.Generator) -> tuple[int, float]:
    return 2 * item, draws.random()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_passes_follow_each_other_and_every_item_is_seen_once_a_pass(tmp_path: Path) -> None:
    learner = Line()
    learned(learner, tmp_path)
    flat = [item for items in learner.seen for item in items]
    assert [len(items) for items in learner.seen] == [3] * 8
    assert sorted(flat[:7]) == sorted(flat[7:14]) == list(range(7))
    assert flat[:7] != flat[7:14]


def test_only_the_chosen_items_are_seen(tmp_path: Path) -> None:
    learner = Line()
    learned(learner, tmp_path, items=[4, 2])
    assert {item for items in learner.seen for item in items} == {2, 4}


def test_a_run_stopped_by_sigterm_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = learned(Line(), tmp_path / "whole")
    with pytest.raises(Stopped, match="goes on from it"):
        learned(Line(stop_at=5), tmp_path / "broken")
    second = Line()
    assert same(learned(second, tmp_path / "broken"), whole)
    assert len(second.seen) == 3  # five of eight steps were done


def test_a_killed_run_goes_on_from_its_last_state(tmp_path: Path) -> None:
    whole = learned(Line(), tmp_path / "whole", save_every=100)

    class Killed(Line):
        def loss(self, items: Sequence[Any], draws: np.random.Generator) -> Tensor:
            if len(self.seen) == 5:
                raise KeyboardInterrupt
            return super().loss(items, draws)

    with pytest.raises(KeyboardInterrupt):
        learned(Killed(), tmp_path / "killed", save_every=2)
    second = Line()
    assert same(learned(second, tmp_path / "killed", save_every=2), whole)
    assert len(second.seen) == 4


def test_seeds_differ_and_a_seed_repeats(tmp_path: Path) -> None:
    one = learned(Line(), tmp_path / "a", seed=1)
    assert same(learned(Line(), tmp_path / "b", seed=1), one)
    assert not same(learned(Line(), tmp_path / "c", seed=2), one)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    learner = Line()
    before = torch.random.get_rng_state()
    learned(learner, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not learner.module.training


def test_workers_read_what_one_process_reads() -> None:
    source = Batches(numbers(), range(7), 3, 1, double)
    alone = list(in_steps(source, range(2, 5), 0))
    assert list(in_steps(source, range(2, 5), 2)) == alone
    assert len({draw for _, items in alone for _, draw in items}) == 9  # each its own draws


def test_an_error_of_a_worker_comes_whole() -> None:
    source = Batches(numbers(10), range(10), 10, 1, None)
    with pytest.raises(CapwrightError, match=r"^item 9 is broken: mend it$"):
        list(in_steps(source, range(1), 1))


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    learned(Line(), tmp_path)
    for changes in (
        {"seed": 2},
        {"schedule": replace(SCHEDULE, learning_rate=0.1)},
        {"items": [1, 2]},
    ):
        with pytest.raises(CapwrightError, match="another schedule, seed or choice"):
            learned(Line(), tmp_path, **changes)


def test_no_items_half_precision_and_a_loss_of_nan_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="no items to learn from"):
        learned(Line(), tmp_path, items=[])
    with pytest.raises(CapwrightError, match="take bf16"):
        learned(Line(), tmp_path, precision="fp16")

    class Broken(Line):
        def loss(self, items: Sequence[Any], draws: np.random.Generator) -> Tensor:
            return super().loss(items, draws) * math.nan

    with pytest.raises(CapwrightError, match="the loss is nan at step 8"):
        learned(Broken(), tmp_path)


def test_the_losses_are_logged(tmp_path: Path) -> None:
    learned(Line(), tmp_path)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["step"] == 8
    assert row["rate"] == pytest.approx(0.05 * SCHEDULE.factor(7))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("poly", {4: 1, 13: 0.5**0.9, 21: (1 / 18) ** 0.9}),
        ("cosine", {4: 1, 13: 0.5, 21: 0.5 + 0.5 * math.cos(math.pi * 17 / 18)}),
        ("one_cycle", {4: 0, 8: (8 / 18) ** 0.9, 13: 1, 21: 1 - (16 / 18) ** 0.9}),
        ("step", {4: 1, 13: 1, 14: 0.1, 20: 0.01}),
        ("constant", {4: 1, 21: 1}),
    ],
)
def test_rates_by_hand(shape: Any, expected: dict[int, float]) -> None:
    schedule = Schedule(
        steps=22, batch=1, learning_rate=1, warmup_steps=4, power=0.9, shape=shape,
        milestones=(14 / 22, 20 / 22),
    )  # fmt: skip
    assert [schedule.factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1]
    for step, value in expected.items():
        assert schedule.factor(step) == pytest.approx(value), step
        left = replace(schedule, least=0.2).factor(step)
        assert left == pytest.approx(0.2 + 0.8 * value), step


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"batch": 0},
        {"warmup_steps": 8},
        {"shape": "square"},
        {"learning_rate": 0},
        {"layer_decay": 1.5},
        {"least": 2},
        {"milestones": (0.9, 0.5)},
    ],
)
def test_schedules_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CapwrightError, match=next(iter(changes))):
        replace(SCHEDULE, **changes)


def test_the_gradient_is_clipped_to_a_norm(tmp_path: Path) -> None:
    class Steep(Line):
        norms: list[float]

        def loss(self, items: Sequence[Any], draws: np.random.Generator) -> Tensor:
            return super().loss(items, draws) * 1000

    learner = Steep()
    fit(learner, numbers(), range(7), replace(SCHEDULE, grad_clip=0.5), folder=tmp_path, seed=0,
        precision="fp32")  # fmt: skip
    squares = [p.grad.square().sum() for p in learner.module.parameters() if p.grad is not None]
    assert torch.stack(squares).sum().sqrt() <= 0.5 + 1e-4


def test_a_learner_may_choose_its_groups(tmp_path: Path) -> None:
    class Own(Line):
        def parameter_groups(self, schedule: Schedule) -> list[dict[str, Any]]:
            return [{"params": list(self.module[3].parameters()), "lr": schedule.learning_rate}]

    learner = Own()
    before = {name: value.clone() for name, value in learner.module.state_dict().items()}
    after = learned(learner, tmp_path)
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["3.weight"], before["3.weight"])


class WithBackbone:
    """A linear layer on the mean of the last map."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.backbone = load_backbone(None, model="nano")
        depth = self.backbone.channels[-1]
        head = nn.Sequential(nn.BatchNorm1d(depth), nn.Linear(depth, 2))
        self.module = nn.ModuleDict({"backbone": self.backbone, "head": head})

    def loss(self, items: Sequence[Any], draws: np.random.Generator) -> Tensor:
        pixels = torch.full((len(items), 3, 32, 32), draws.random())
        pixels = pixels * torch.tensor(items).view(-1, 1, 1, 1) / 7
        out = self.module["head"](self.backbone(pixels)[-1].mean(dim=(2, 3)))
        loss: Tensor = (out[:, 0] - torch.tensor(items)).square().mean()
        return loss


def test_a_backbone_without_a_rate_is_frozen_to_the_bit_and_not_stored(tmp_path: Path) -> None:
    learner = WithBackbone()
    before = {k: v.clone() for k, v in learner.backbone.state_dict().items()}
    schedule = Schedule(steps=4, batch=3, learning_rate=0.05)
    fit(learner, numbers(), range(7), schedule, folder=tmp_path, seed=0, precision="fp32")
    assert same(learner.backbone.state_dict(), before)
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert all(name.startswith("head.") for name in state["module"])
    again = WithBackbone()
    fit(again, numbers(), range(7), schedule, folder=tmp_path, seed=0, precision="fp32")
    assert same(again.module.state_dict(), learner.module.state_dict())


def test_a_backbone_with_a_rate_learns_by_its_layers(tmp_path: Path) -> None:
    learner = WithBackbone()
    schedule = Schedule(
        steps=2, batch=3, learning_rate=0.05, encoder_learning_rate=0.01, layer_decay=0.5
    )
    groups = parameter_groups(learner.module, schedule)
    rates = {p: group["lr"] for group in groups for p in group["params"]}
    assert set(rates) == set(learner.module.parameters())
    blocks = len(learner.backbone.visual.trunk.blocks)
    named = dict(learner.module.named_parameters())
    for number in range(blocks):
        name = f"backbone.visual.trunk.blocks.{number}.mlp.fc1.weight"
        assert rates[named[name]] == pytest.approx(0.01 * 0.5 ** (blocks - number))
    assert rates[named["head.1.weight"]] == 0.05
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert (decays[named["head.1.weight"]], decays[named["head.1.bias"]]) == (0.05, 0)
    before = {k: v.clone() for k, v in learner.backbone.state_dict().items()}
    fit(learner, numbers(), range(7), schedule, folder=tmp_path, seed=0, precision="fp32")
    assert not same(learner.backbone.state_dict(), before)
