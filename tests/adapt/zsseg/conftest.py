"""A tiny CLIP and a tiny MaskFormer, built here."""

from typing import Any

import pytest
import torch

from capwright.adapt.zsseg.proposals import ProposalNetwork, ProposalSettings
from capwright.evaluate.encoder import Encoder, load_encoder

SIDE = 32
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {
        "timm_model_name": "capwright_vit_nano_s8",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": SIDE,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 2},
}
BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TINY = ProposalSettings(
    backbone=BACKBONE, queries=5, layers=2, width=16, heads=2, feedforward=16, mask_features=32,
    classifier_hidden=16, dropout=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_config() -> dict[str, Any]:
    return CLIP


@pytest.fixture
def encoder() -> Encoder:
    return load_encoder(None, model=CLIP, seed=0)


@pytest.fixture
def settings() -> ProposalSettings:
    return TINY


@pytest.fixture
def network() -> ProposalNetwork:
    torch.manual_seed(0)
    return ProposalNetwork(TINY, 16).eval()
