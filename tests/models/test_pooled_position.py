"""Pictures read at their class token alone: the same embeddings and gradients with less work."""

from typing import Any

import pytest
import torch
from torch import Tensor

from capwright.models import pooled_position, towers
from capwright.models.kept_tokens import kept_tokens

TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 24, "patch_size": 8, "width": 16, "layers": 3, "head_width": 8}
POOLS_THE_CLASS_TOKEN: list[dict[str, Any]] = [
    {},
    {"layers": 1},
    {"ls_init_value": 0.3},
    {"final_ln_after_pool": True},
    {"no_ln_pre": True},
]
READS_MORE: list[dict[str, Any]] = [
    {"pool_type": "avg"},
    {"attentional_pool": True, "attn_pooler_heads": 2},
    {"output_tokens": True},
    {"qk_norm": True},  # blocks of another class
    {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False},
]


def build(**vision: Any) -> Any:
    torch.manual_seed(0)
    config = {"embed_dim": 12, "vision_cfg": VISION | vision, "text_cfg": TEXT}
    return towers.build(config).double()


def whole(model: Any, images: Tensor) -> Tensor:
    embedded: Tensor = model.visual(images)
    return embedded


def seen_by_last_block(model: Any) -> list[int]:
    """Positions whose feed-forward network the last block computes, a number a call."""
    seen: list[int] = []
    last = model.visual.transformer.resblocks[-1]
    last.mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0].numel() // x[0].shape[-1]))
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("vision", POOLS_THE_CLASS_TOKEN)
def test_embeddings_and_gradients_are_those_of_the_whole(
    vision: dict[str, Any], checkpointing: bool
) -> None:
    model = build(**vision).train()
    model.visual.set_grad_checkpointing(checkpointing)
    images = torch.rand(3, 3, 24, 24, dtype=torch.float64)
    weight = torch.rand(3, 12, dtype=torch.float64)
    found = {}
    for name, embed in (("whole", whole), ("ours", towers.encode_image)):
        model.zero_grad()
        embedded = embed(model, images)
        (embedded * weight).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.visual.named_parameters()}
        found[name] = embedded.detach(), gradients
    torch.testing.assert_close(found["ours"], found["whole"], rtol=1e-9, atol=1e-12)


def test_last_block_computes_one_position_of_each_picture() -> None:
    model = build()
    seen = seen_by_last_block(model)
    towers.encode_image(model, torch.rand(5, 3, 24, 24, dtype=torch.float64))
    assert seen == [5]


def test_dropped_patches_and_other_sizes_give_what_the_whole_gives() -> None:
    model, kept = build(), torch.tensor([[0, 4, 7], [1, 2, 3]])
    images = torch.rand(2, 3, 24, 24, dtype=torch.float64)
    with kept_tokens(model, kept):
        torch.testing.assert_close(towers.encode_image(model, images), whole(model, images))
    wide = torch.rand(2, 3, 24, 40, dtype=torch.float64)
    embedded, _ = towers.embed_with_patches(model, wide)
    torch.testing.assert_close(towers.encode_image(model, wide), embedded)


@pytest.mark.parametrize("vision", READS_MORE)
def test_towers_that_read_more_are_called_as_a_whole(vision: dict[str, Any]) -> None:
    model = build(**vision).eval()
    assert not pooled_position.pools_class_token(model.visual)
    side = 224 if "timm_model_name" in vision else 24
    with torch.no_grad():
        images = torch.rand(1, 3, side, side, dtype=torch.float64)
        expected = model.visual(images)
        expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(towers.encode_image(model, images), expected)
