"""A tiny model, its pictures and plans."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from capwright.adapt.must import Config
from tiny_must import COLOURS, write_checkpoint, write_pictures


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train": dict.fromkeys(COLOURS, 4), "test": dict.fromkeys(COLOURS, 2)}
    return write_pictures(tmp_path_factory.mktemp("pictures"), counts)


@pytest.fixture
def plan(checkpoint: Path, pictures: Path, tmp_path: Path) -> Callable[..., Config]:
    """Six steps of eight pictures; `plan(**changes)`."""

    def made(**changes: Any) -> Config:
        settings: dict[str, Any] = {
            "checkpoint": checkpoint,
            "data": pictures,
            "out": tmp_path / "run",
            "test_split": "test",
            "templates": ("a {}",),
            "threshold": 0.35,
            "mask_patch": 8,
            "epochs": 4,
            "batch": 8,
            "learning_rate": 1e-2,
            "momentum": (0.5, 0.9),
            "momentum_steps": 4,
            "precision": "fp32",
            "save_every": 2,
        }
        return Config(**(settings | changes))

    return made
