from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capwright.captions import training
from capwright.captions.training import Phase, draw_batch, train_phase

PHASE = Phase(
    name="test", steps=12, batch_size=4, learning_rate=0.05, warmup_steps=2,
    evaluate_every_steps=3, save_every_s=0.0,
)  # fmt: skip
ROWS = np.arange(10, 20)


class Killed(Exception):
    pass


def train(folder: Path, kill_at: int = -1) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss_of_step(step: int) -> Tensor:
        if step == kill_at:
            raise Killed
        batch = draw_batch(0, PHASE, step, ROWS)
        x = torch.from_numpy(batch).float()[:, None] / torch.tensor([10.0, 20.0, 30.0])
        return (model(x)[:, 0] - x[:, 0]).square().mean()

    def held_loss() -> float:
        return float((model(torch.ones(1, 3)) - 1).square())

    train_phase(model, PHASE, 0, folder, loss_of_step, held_loss)
    return model


@pytest.mark.parametrize("kill_at", [1, 5, 11])
def test_a_killed_phase_ends_with_the_same_weights(tmp_path: Path, kill_at: int) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", kill_at)
    resumed = train(tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_finished_phase_is_not_trained_again(tmp_path: Path) -> None:
    first = train(tmp_path)
    again = train(tmp_path, kill_at=0)
    assert torch.equal(first[0].weight, again[0].weight)


def test_the_weights_that_read_the_held_best_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    seen: list[float] = []

    def held_loss() -> float:
        seen.append(float(model.weight.detach()))
        return abs(len(seen) - 2)  # the second look is the best

    train_phase(model, PHASE, 0, tmp_path, lambda step: model(torch.ones(1, 1)).sum(), held_loss)
    assert len(seen) == 4
    assert float(model.weight.detach()) == seen[1]


def test_every_row_is_drawn_once_a_pass_and_passes_differ() -> None:
    drawn = np.concatenate([draw_batch(0, PHASE, step, ROWS) for step in range(5)])
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == list(ROWS)
    assert list(first) != list(second)
    assert not np.array_equal(draw_batch(1, PHASE, 0, ROWS), draw_batch(0, PHASE, 0, ROWS))


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [training._pace(step, PHASE) for step in range(PHASE.steps + 1)]
    assert rates[0] == pytest.approx(0.5)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0)
