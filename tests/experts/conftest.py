"""Toy scenes, and experts of transformers saved to folders."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from toy_scenes import write_scenes


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "tars")


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("unlabelled") / "tars", labels=False)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Save the model of a name once; gives its folder."""
    from tiny_experts import MODELS

    made: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp("models") / name
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                MODELS[name](folder).eval().save_pretrained(folder)
            made[name] = str(folder)
        return made[name]

    return get
