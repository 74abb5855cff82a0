"""Schedules and what is refused."""

import math
from typing import Any

import pytest

from capwright.adapt.must import Config, Weights
from capwright.core.errors import CapwrightError


def test_the_teacher_s_momentum_rises_in_a_line_and_stays() -> None:
    config = Config(momentum=(0.99, 0.9998), momentum_steps=500)
    assert config.teacher_momentum(0) == 0.99
    assert config.teacher_momentum(250) == pytest.approx((0.99 + 0.9998) / 2)
    assert config.teacher_momentum(500) == config.teacher_momentum(9999) == pytest.approx(0.9998)
    assert Config(momentum_steps=0).teacher_momentum(0) == 0.9998


def test_the_rate_follows_a_cosine_from_its_share_of_the_batch() -> None:
    config = Config(learning_rate=2e-5, batch=1024)
    assert config.rate(0, 100) == pytest.approx(8e-5)
    assert config.rate(50, 100) == pytest.approx((8e-5 + 1e-6) / 2)
    assert config.rate(99, 100) == pytest.approx(
        1e-6 + (8e-5 - 1e-6) * 0.5 * (1 + math.cos(0.99 * math.pi))
    )


def test_the_mean_prediction_remembers_from_512_classes_on() -> None:
    assert [Config().kept(classes) for classes in (10, 511, 512, 1000)] == [0, 0, 0.5, 0.5]
    assert Config(running_mean=0.2).kept(10) == 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.0}, "threshold=1.0, .* shares from 0 to 1"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0: a share between 0 and 1"),
        ({"momentum": (0.999, 0.9)}, r"momentum is \(0.999, 0.9\): two numbers"),
        ({"running_mean": 1.0}, "running_mean is 1.0: a share"),
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0: it must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0, layer_decay=0.65"),
        ({"precision": "fp16"}, "precision fp16 needs a scaled loss"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        Config(**change)


@pytest.mark.parametrize("weights", [(0, 0, 0, 0), (1, -1, 1, 1), (1, float("nan"), 1, 1)])
def test_weights_below_zero_or_none_at_all_are_refused(weights: tuple[float, ...]) -> None:
    names = ("self_training", "fairness", "masked_image", "alignment")
    with pytest.raises(CapwrightError, match="none may be below 0, and one must be above"):
        Weights(**dict(zip(names, weights, strict=True)))
