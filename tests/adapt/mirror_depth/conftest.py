"""A tiny CLIP and a tiny plan, built here."""

from pathlib import Path
from typing import Any

import pytest
import torch

from capwright.adapt.mirror_depth import Config
from capwright.evaluate.encoder import Encoder, load_encoder
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.pixel_values import ReadOut

CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "timm_model_name": "capwright_vit_nano_s8",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 2},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def encoder() -> Encoder:
    found = load_encoder(None, model=CLIP, seed=0)
    found.model.requires_grad_(False)
    return found


@pytest.fixture
def plan(tmp_path: Path) -> Config:
    return Config(
        checkpoint=None, model=CLIP, data=tmp_path / "scenes", out=tmp_path / "out",
        dataset="scenes", tokens=5, width=8, most_m=20.0, precision="fp32",
        read_out=ReadOut(batch=4),
        schedule=Schedule(steps=6, batch=3, learning_rate=1e-3), save_every=2,
    )  # fmt: skip
