"""Plans that are refused before anything is read, each in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capwright.core.errors import CapwrightError
from capwright.pretrain import engine
from capwright.pretrain.config import MaskedAutoencoderSettings, PretrainConfig

Plan = Callable[..., PretrainConfig]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad_clip": -1.0}, "grad_clip is -1.0: it must be 0 or more"),
        ({"keep_checkpoints": -1}, "keep_checkpoints is -1: it must be 0 or more"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001: it must be 0 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: it must be 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1: it must be 0 or more"),
        ({"loader_workers": -1}, "loader_workers is -1: it must be 0 or more"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\): two momenta from 0 to below 1"),
        ({"betas": (-0.1, 0.9)}, r"betas is \(-0.1, 0.9\): two momenta from 0 to below 1"),
    ],
)
def test_numbers_that_train_nothing(
    changes: dict[str, Any], message: str, tmp_path: Path, tiny_config: Plan
) -> None:
    with pytest.raises(CapwrightError, match=message):
        tiny_config(tmp_path, tmp_path, **changes)


@pytest.mark.parametrize("name", ["decoder_width", "decoder_layers", "decoder_heads"])
def test_a_decoder_of_nothing(name: str) -> None:
    with pytest.raises(CapwrightError, match=rf"masked_autoencoder.{name} is 0: it must be 1 or"):
        MaskedAutoencoderSettings(**{name: 0})


@pytest.mark.parametrize(("width", "heads"), [(90, 2), (96, 5)])
def test_a_decoder_that_its_heads_cannot_share(
    width: int, heads: int, tmp_path: Path, tiny_config: Plan
) -> None:
    settings = MaskedAutoencoderSettings(decoder_width=width, decoder_heads=heads)
    config = tiny_config(
        tmp_path, tmp_path, objectives={"masked_autoencoder": 1.0}, masked_autoencoder=settings
    )
    with pytest.raises(CapwrightError, match=f"decoder_width is {width}: choose a multiple of 4"):
        engine.run(config)
    assert not list(tmp_path.iterdir())  # no folder is bound to such a plan
    tiny_config(tmp_path, tmp_path, masked_autoencoder=settings).check_together()  # not built


@pytest.mark.parametrize(
    ("weights", "step"),
    [
        ({"contrastive": ((0, 0), (0.1, 1))}, 0),
        ({"contrastive": ((0.25, 0), (0.25, 1))}, 0),
        ({"contrastive": ((0.996, 1), (0.999, 0))}, None),  # the last of 100 steps is at 0.99
        ({"contrastive": ((0.5, 1), (0.985, 0))}, 99),
        ({"contrastive": ((0.4, 1), (0.4, 0)), "captioning": ((0.6, 0), (0.6, 1))}, 40),
        ({"contrastive": ((0.2, 1), (0.5, 0)), "captioning": ((0.5, 0), (0.9, 1))}, 50),
        ({"contrastive": ((0.2, 1), (0.505, 0)), "captioning": ((0.505, 0), (0.9, 1))}, None),
        ({"contrastive": ((0, 0.1), (0.1, 1))}, None),
        ({"contrastive": ((0, 1), (1, 0))}, None),
        ({"contrastive": ((0.4, 1), (0.4, 0)), "captioning": ((0.4, 0), (0.4, 1))}, None),
    ],
)
def test_a_step_without_an_objective(
    weights: dict[str, Any], step: int | None, tmp_path: Path, tiny_config: Plan
) -> None:
    config = tiny_config(tmp_path, tmp_path, objectives=weights, samples=800)
    empty = [number for number in range(config.steps) if not config.active(number)]
    assert (empty[0] if empty else None) == step
    if step is None:
        config.check_together()
        return
    with pytest.raises(CapwrightError, match=f"above 0 at step {step} of 100 .contrastive "):
        config.check_together()


def test_more_parts_than_pictures(tmp_path: Path, tiny_config: Plan) -> None:
    config = tiny_config(tmp_path, tmp_path / "run", accumulation=9)
    message = r"accumulation 9 is more than the 8 pictures of a process \(batch_size 8 over 1\)"
    with pytest.raises(CapwrightError, match=message):
        engine.run(config)
    with pytest.raises(CapwrightError, match=message):
        engine.profile(config, 1)
