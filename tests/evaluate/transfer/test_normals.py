"""Normals by transfer: the loss, flips, what is scored."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from capwright.core.errors import CapwrightError
from capwright.dense.backbone import load_backbone
from capwright.evaluate.dense_metrics import angular_errors, normals_metrics
from capwright.evaluate.outcomes import values
from capwright.evaluate.transfer import normals
from capwright.evaluate.transfer.normals import (
    MIRROR,
    QUANTITY,
    NormalsSettings,
    build,
    cosine_loss,
    measure,
    median_of_counts,
)
from capwright.evaluate.transfer.pixel_values import PixelLearner, ReadOut, require_known
from capwright.evaluate.transfer.pixel_views import ViewSettings, learning_view
from pixel_sets import normals_set

SIZES = ((24, 40), (24, 40), (32, 32))
SETTINGS = NormalsSettings(read_out=ReadOut(batch=2, flip=False))


class Oracle(nn.Module):
    """Knows how the toys' normals are made, and turns them by some degrees around the y axis."""

    def __init__(self, degrees: float = 0.0) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.deg2rad(torch.tensor(degrees)))
        self.backbone = SimpleNamespace(normalised=lambda pixels: pixels.float() / 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, y, z = images[:, 0] - 0.5, images[:, 1] - 0.5, -torch.ones_like(images[:, 0])
        cos, sin = self.turn.cos(), self.turn.sin()
        return torch.stack([cos * x + sin * z, y, cos * z - sin * x], dim=1) * 3  # of any length


def test_a_perfect_answer_has_no_error() -> None:
    metrics, outcomes = measure(Oracle(), normals_set(SIZES), range(3), SETTINGS)  # type: ignore[arg-type]
    assert metrics["mean_degrees"] == pytest.approx(0, abs=0.05)
    assert metrics["median_degrees"] == pytest.approx(0, abs=0.05)
    assert [metrics[f"within_{bound}"] for bound in ("11.25", "22.5", "30")] == [1, 1, 1]
    assert "median_degrees" not in outcomes.metrics


def test_metrics_are_those_over_all_pixels_and_outcomes_give_them_back() -> None:
    pictures = normals_set(SIZES)
    metrics, outcomes = measure(Oracle(25.0), pictures, range(3), SETTINGS)  # type: ignore[arg-type]
    degrees = []
    for number in range(3):
        item = pictures[number]
        pixels = torch.from_numpy(np.array(item.image)).permute(2, 0, 1)[None].float() / 255
        answer = Oracle(25.0)(pixels).detach().numpy()
        degrees.append(angular_errors(answer, item.normals_3HW[None]))
    expected = normals_metrics(np.concatenate(degrees))
    assert metrics["median_degrees"] == pytest.approx(expected["median_degrees"], abs=0.01)
    for name in ("mean_degrees", "within_11.25", "within_22.5", "within_30"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-4), name
        found = values(outcomes.metrics[name], np.ones((1, 3)))
        assert found[0] == pytest.approx(metrics[name], rel=1e-9), name
    assert 0 < expected["within_22.5"] < 1  # type: ignore[operator]


def test_a_flipped_test_picture_has_its_x_turned_back() -> None:
    """The oracle takes x from a colour, which mirroring keeps: so both directions disagree in x."""
    pictures = normals_set(SIZES)
    flipped, _ = measure(Oracle(), pictures, range(3), replace(SETTINGS, read_out=ReadOut()))  # type: ignore[arg-type]
    expected = []
    for number in range(3):
        truth = pictures[number].normals_3HW
        without_x = np.stack([truth[0] * 0, truth[1], truth[2]])
        expected.append(angular_errors(without_x[None], truth[None]))
    assert flipped["mean_degrees"] == pytest.approx(np.concatenate(expected).mean(), abs=0.01)


def test_a_mirrored_view_points_the_other_way() -> None:
    item = normals_set(SIZES)[0]
    turned = 0
    for seed in range(10):
        draws = np.random.default_rng(seed)
        _, label = learning_view(item.image, item.normals_3HW, ViewSettings(), MIRROR, draws)
        mirrored = item.normals_3HW[:, :, ::-1] * np.array(MIRROR, np.float32)[:, None, None]
        same = np.array_equal(label, item.normals_3HW)
        assert same or np.array_equal(label, mirrored)
        turned += not same
    assert 0 < turned < 10


def test_the_loss_is_one_minus_the_cosine_over_known_pixels() -> None:
    answers, truth = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5).double()
    truth[:, :, 1] = 0
    total, count = 0.0, 0
    for a, t in zip(
        answers.movedim(1, -1).reshape(-1, 3), truth.movedim(1, -1).reshape(-1, 3), strict=True
    ):
        if t.abs().sum() > 0:
            total, count = total + 1 - float(a @ t / a.norm() / t.norm()), count + 1
    assert float(cosine_loss(answers, truth)) == pytest.approx(total / count, rel=1e-9)
    unknown = answers.requires_grad_()
    cosine_loss(unknown, truth * 0).backward()
    assert unknown.grad is not None
    assert unknown.grad.abs().sum() == 0


@pytest.mark.parametrize("head", ["linear", "light"])
def test_a_step_reaches_the_head_and_not_a_frozen_encoder(head: Any) -> None:
    pictures = normals_set(((48, 64),) * 2)
    backbone = load_backbone(None, model="nano")
    backbone.freeze()
    model = build(backbone, NormalsSettings(head=head, width=8))
    learner = PixelLearner(model, QUANTITY, ViewSettings(cut=(32, 40)))
    draws = np.random.default_rng(0)
    learner.loss([learner.view(pictures[n], draws) for n in (0, 1)], draws).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    assert all(p.grad is None for p in backbone.parameters())


def test_the_median_of_counts() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 999):
        degrees = rng.gamma(2, 10, count).clip(0, 180)
        counts = np.histogram(degrees, bins=normals.STEPS, range=(0, 180))[0]
        low, high = np.sort(degrees)[[(count - 1) // 2, count // 2]]
        assert low - 0.01 <= median_of_counts(counts, 180 / normals.STEPS) <= high + 0.01


def test_a_set_without_known_normals_is_refused() -> None:
    blank = normals_set(SIZES)
    read = blank.read
    blank = replace(blank, read=lambda i: replace(read(i), normals_3HW=read(i).normals_3HW * 0))
    with pytest.raises(
        CapwrightError, match="none of the 3 test pictures of toys has a known normal"
    ):
        measure(Oracle(), blank, range(3), SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(CapwrightError, match="any known normals"):
        require_known(blank, range(3), QUANTITY)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(CapwrightError, match="normals head 'bins'"):
        NormalsSettings(head="bins")  # type: ignore[arg-type]
    with pytest.raises(CapwrightError, match=r"views.strip=0"):
        NormalsSettings(views=ViewSettings(strip=0.25))
