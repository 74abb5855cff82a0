"""Depth by transfer: what is scored, what is learned from, what is refused."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from capwright.core.errors import CapwrightError
from capwright.dense.backbone import load_backbone
from capwright.evaluate.dense_metrics import depth_metrics
from capwright.evaluate.outcomes import values
from capwright.evaluate.transfer.depth import DepthSettings, build, measure, quantity, scoring
from capwright.evaluate.transfer.pixel_values import PixelLearner, ReadOut, require_known
from capwright.evaluate.transfer.pixel_views import ViewSettings
from pixel_sets import depth_of, depth_set

SIZES = ((24, 40), (24, 40), (32, 32), (24, 40))


class Oracle(nn.Module):
    """Knows how the toys' depths are made, and errs by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.backbone = SimpleNamespace(normalised=lambda pixels: pixels.float() / 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (1 + 8 * images.mean(dim=1, keepdim=True)) * self.factor


def settings(**changes: Any) -> DepthSettings:
    return replace(DepthSettings(read_out=ReadOut(batch=2)), **changes)


def test_a_perfect_answer_has_no_error() -> None:
    metrics, outcomes = measure(Oracle(), depth_set(SIZES), range(4), settings())  # type: ignore[arg-type]
    assert metrics["rmse"] == pytest.approx(0, abs=1e-5)
    assert metrics["absrel"] == pytest.approx(0, abs=1e-6)
    assert metrics["log10"] == pytest.approx(0, abs=1e-6)
    assert [metrics[f"delta{n}"] for n in (1, 2, 3)] == [1, 1, 1]
    assert outcomes.keys == ("000", "001", "002", "003")


def test_a_factor_is_found_in_every_metric() -> None:
    metrics, _ = measure(Oracle(1.3), depth_set(SIZES), range(4), settings(most_m=20.0))  # type: ignore[arg-type]
    assert metrics["absrel"] == pytest.approx(0.3, rel=1e-4)
    assert metrics["log10"] == pytest.approx(np.log10(1.3), rel=1e-4)
    assert (metrics["delta1"], metrics["delta2"]) == (0, 1)


def test_metrics_are_means_over_pictures_and_outcomes_give_them_back() -> None:
    pictures, chosen = depth_set(SIZES), [1, 3]
    metrics, outcomes = measure(Oracle(1.2), pictures, chosen, settings(most_m=20.0))  # type: ignore[arg-type]
    truth = np.stack([pictures[number].depth_HW for number in chosen])
    answer = np.stack([depth_of(pictures[number].image) * 1.2 for number in chosen])
    answer[:, 0] = 1  # unknown there
    expected = depth_metrics(answer, truth, names=tuple(metrics))
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name], rel=1e-4), name
        found = values(outcomes.metrics[name], np.ones((1, 2)))
        assert found[0] == pytest.approx(value, rel=1e-9), name


def test_answers_are_clipped_to_both_caps() -> None:
    metrics, _ = measure(Oracle(100.0), depth_set(SIZES), range(4), settings())  # type: ignore[arg-type]
    truth = [depth_of(depth_set(SIZES)[number].image)[1:] for number in range(4)]
    expected = np.mean([np.sqrt(np.mean((10.0 - each) ** 2)) for each in truth])
    assert metrics["rmse"] == pytest.approx(expected, rel=1e-5)


def test_only_the_crop_is_scored_and_it_is_the_sets_own() -> None:
    pictures = depth_set(((480, 640),), crops=("eigen", "none"))
    wrong_outside = Oracle()
    inside = torch.zeros(480, 640)
    inside[45:471, 41:601] = 1
    forward = wrong_outside.forward
    wrong_outside.forward = lambda images: forward(images) * (2 - inside)  # type: ignore[method-assign]
    found = {
        crop: measure(
            wrong_outside, pictures, [0], settings(crop=crop, read_out=ReadOut(flip=False))
        )[0]  # type: ignore[arg-type]
        for crop in (None, "eigen", "none")
    }
    assert found[None] == found["eigen"]
    assert found[None]["absrel"] == pytest.approx(0, abs=1e-6)
    assert found["none"]["absrel"] > 0.05  # type: ignore[operator]


def test_kittis_eigen_crop_is_its_own_and_nyuv2s_is_refused() -> None:
    size = (375, 1242)
    pictures = depth_set((size,), crops=("garg", "kitti_eigen", "none"))
    chosen = settings(crop="kitti_eigen", read_out=ReadOut(flip=False))
    metrics, _ = measure(Oracle(1.2), pictures, [0], chosen)  # type: ignore[arg-type]
    top, bottom = int(0.3324324 * 375), int(0.91351351 * 375)
    left, right = int(0.0359477 * 1242), int(0.96405229 * 1242)
    truth = depth_of(pictures[0].image)[top:bottom, left:right]
    answer = np.clip(1.2 * truth, 0.1, 10)
    expected = np.sqrt(np.mean((answer - truth)[(truth > 0.1) & (truth < 10)] ** 2))
    assert metrics["rmse"] == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(
        CapwrightError,
        match="toys is not scored in the crop 'eigen': allowed are garg, kitti_eigen, none; set",
    ):
        scoring(settings(crop="eigen"), pictures)


def test_a_set_without_known_depth_is_refused() -> None:
    blank = depth_set(SIZES)
    read = blank.read
    blank = replace(blank, read=lambda i: replace(read(i), depth_HW=read(i).depth_HW * 0))
    with pytest.raises(
        CapwrightError, match="none of the 4 test pictures of toys has a known depth"
    ):
        measure(Oracle(), blank, range(4), settings())  # type: ignore[arg-type]
    caps = scoring(settings(), blank)
    with pytest.raises(CapwrightError, match="any known depth"):
        require_known(blank, range(4), quantity(settings(), caps))


def test_a_picture_without_known_depth_is_left_out() -> None:
    pictures = depth_set(SIZES)
    read = pictures.read
    some = replace(pictures, read=lambda i: replace(read(i), depth_HW=read(i).depth_HW * (i != 1)))
    metrics, outcomes = measure(Oracle(1.2), some, range(4), settings())  # type: ignore[arg-type]
    expected, _ = measure(Oracle(1.2), pictures, [0, 2, 3], settings())  # type: ignore[arg-type]
    assert metrics == pytest.approx(expected)
    assert outcomes.metrics["rmse"].whole.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("head", ["glp", "deconv", "linear"])
def test_the_loss_is_silog_over_pixels_between_the_caps_and_reaches_the_head(head: Any) -> None:
    pictures = depth_set(((48, 64),) * 3)
    chosen = settings(head=head, width=8, pyramid_width=16, bins=16, least_m=2.0, most_m=6.0)
    caps = scoring(chosen, pictures)
    depths = "spread" if head == "glp" else "last"
    model = build(load_backbone(None, model="nano", depths=depths), chosen, caps)  # type: ignore[arg-type]
    metres = torch.rand(3, 1, 48, 64) * 9 + 0.5
    truth = torch.from_numpy(np.stack([pictures[n].depth_HW for n in range(3)]))[:, None]
    found = quantity(chosen, caps).loss(metres, truth)
    known = (truth > 2) & (truth < 6)
    d = metres[known].double().log() - truth[known].double().log()
    expected = torch.sqrt((d**2).mean() - 0.5 * d.mean() ** 2 + 1e-6)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)

    learner = PixelLearner(model, quantity(chosen, caps), ViewSettings(cut=(32, 48), strip=0.5))
    draws = np.random.default_rng(0)
    loss = learner.loss([learner.view(pictures[n], draws) for n in range(3)], draws)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())


def test_settings_that_make_no_sense_are_refused() -> None:
    pictures = depth_set(SIZES)
    with pytest.raises(CapwrightError, match="depth head 'dpt'"):
        settings(head="dpt")
    with pytest.raises(CapwrightError, match="crop 'egien'"):
        settings(crop="egien")
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(CapwrightError, match=f"silog_weight is {weight}: allowed are 0 to 1"):
            settings(silog_weight=weight)
    with pytest.raises(CapwrightError, match=r"depths from 10.0 to 5 m"):
        scoring(settings(least_m=10.0, most_m=5), pictures)
    caps = scoring(settings(), pictures)
    learner = PixelLearner(Oracle(), quantity(settings(), caps), ViewSettings())  # type: ignore[arg-type]
    draws = np.random.default_rng(0)
    with pytest.raises(CapwrightError, match="pictures of 2 sizes"):
        learner.loss([learner.view(pictures[n], draws) for n in (1, 2)], draws)
