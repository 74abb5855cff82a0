"""A tower that was opened up gives what the tower itself gives."""

from typing import Any

import pytest
import torch

from capwright.core.errors import CapwrightError
from capwright.dense.training_free.layers import Layers
from capwright.dense.vit import open_up
from capwright.models import towers

OPEN_CLIP = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TIMM = {"timm_model_name": "capwright_vit_nano_s8", "timm_pool": "avg", "timm_proj": "linear"}


def model(vision: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    return towers.build(config).eval().double()


TOWERS = {
    "open_clip": OPEN_CLIP,
    "open_clip, average": {**OPEN_CLIP, "pool_type": "avg", "final_ln_after_pool": True},
    "open_clip, layer scale": {**OPEN_CLIP, "ls_init_value": 0.5},
    "timm, average": {**TIMM, "image_size": 64},
    "timm, class token": {
        "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear",
        "image_size": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("size", ["own", (48, 80)])
def test_all_blocks_and_the_pooling_are_the_towers_own_forward(name: str, size: Any) -> None:
    built = model(TOWERS[name])
    height, width = (TOWERS[name]["image_size"],) * 2 if size == "own" else size
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        layers = Layers(open_up(built), images)
        found = layers.vit.embedding(layers.after(layers.last))
        expected = towers.encode_image(built, images)
    patch = 16 if name == "timm, class token" else 8
    assert layers.grid == (height // patch, width // patch)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", ["capwright_mci_nano_s8", "vit_base_patch16_siglip_224"])
def test_other_towers_are_refused(name: str) -> None:
    pool = "map" if "siglip" in name else "avg"
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": "", "image_size": 32}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    width = 768 if "siglip" in name else 24
    vision["timm_proj"] = "none" if "siglip" in name else "linear"
    built = towers.build(
        {"embed_dim": width, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    )
    with pytest.raises(CapwrightError, match="cannot be opened up"):
        open_up(built)
