"""Two tiny CLIPs, one with timm's image tower and one with open_clip's, and a tiny plan."""

from pathlib import Path
from typing import Any

import pytest
import torch

from capwright.adapt.mirror_depth import Config
from capwright.evaluate.encoder import Encoder, load_encoder
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings

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
SMALLER: dict[str, Any] = {
    **CLIP,
    "vision_cfg": {
        "layers": 4, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_config() -> dict[str, Any]:
    return CLIP


@pytest.fixture
def encoder() -> Encoder:
    found = load_encoder(None, model=CLIP, seed=0)
    found.model.requires_grad_(False)
    return found


@pytest.fixture
def plan(tmp_path: Path) -> Config:
    return Config(
        checkpoint=None, model=SMALLER, data=tmp_path / "scenes", out=tmp_path / "out",
        test_data=tmp_path / "tested",
        dataset="scenes", tokens=5, width=8, most_m=20.0, precision="fp32",
        views=ViewSettings(short_side=32), read_out=ReadOut(batch=8), test_pictures=8,
        schedule=Schedule(steps=4, batch=3, learning_rate=1e-3), save_every=2,
    )  # fmt: skip
