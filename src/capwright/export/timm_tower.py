"""The image tower as a timm model: `timm.create_model("local-dir:DIR", pretrained=True)`.

Writes `config.json` and `model.safetensors` in timm's form. The model gives the pooled features
before CLIP's projection (`num_classes` is 0), and its maps through `forward_intermediates`.

A tower that is timm's already is saved as it is. open_clip's own vision transformer becomes
`vit_base_patch16_clip_224` with other sizes (`model_args`), its weights renamed by timm's reader.

Shapes: B pictures, H and W pixels, D features.
"""

from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models import save_for_hf
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.export import Written
from capwright.export.blocks import unusual_blocks
from capwright.export.open_clip_folder import OURS
from capwright.export.source import Source, difference

ARCHITECTURE = "vit_base_patch16_clip_224"


@torch.no_grad()
def write(source: Source, folder: Path) -> Written:
    """Write the folder and compare the features of what timm makes of it."""
    visual = source.model.visual
    arguments: dict[str, Any] = {}
    if isinstance(visual, TimmModel):
        tower = visual.trunk
        expected_BD = tower(source.images_B3HW)
    else:
        fault = _fault(visual)
        if fault:
            raise CapwrightError(
                f"the image tower {fault}, which timm's vision transformer for CLIP has not: "
                "use --to open_clip or --to onnx"
            )
        tower, arguments = _as_timm(visual)
        expected_BD = _pooled(visual, source.images_B3HW)
    save_for_hf(
        tower,
        str(folder),
        model_args=arguments or None,
        safe_serialization=True,
        model_config={"pretrained_cfg": _data_config(source)},
    )
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = source.image_tower_is_ours
    return Written(
        load=("import capwright.models\n" if ours else "")
        + 'import timm\nmodel = timm.create_model("local-dir:DIR", pretrained=True)',
        largest_difference=difference(again(source.images_B3HW), expected_BD),
        notes=(
            "The image tower alone, up to its pooled features"
            + ("." if tower.num_classes else "; CLIP's projection is not in it."),
            *((OURS,) if ours else ()),
        ),
    )


def _fault(visual: Any) -> str:
    if not isinstance(visual, VisionTransformer):
        return f"is a {type(visual).__name__}"
    if visual.attn_pool is not None:
        return "pools by attention"
    if visual.pool_type != "tok":
        return f"pools by {visual.pool_type!r} and not by the class token"
    return unusual_blocks(visual.transformer)


def _as_timm(visual: Any) -> tuple[Any, dict[str, Any]]:
    first = visual.transformer.resblocks[0]
    width = visual.conv1.out_channels
    arguments: dict[str, Any] = {
        "img_size": list(visual.image_size),
        "patch_size": list(visual.patch_size),
        "embed_dim": width,
        "depth": len(visual.transformer.resblocks),
        "num_heads": first.attn.num_heads,
        "mlp_ratio": first.mlp.c_fc.out_features / width,
        "pre_norm": not isinstance(visual.ln_pre, torch.nn.Identity),
        "act_layer": _activation(first.mlp.gelu),
    }
    tower = timm.create_model(ARCHITECTURE, num_classes=0, **arguments).eval()
    weights = {f"visual.{k}": v for k, v in visual.state_dict().items() if k != "proj"}
    weights = checkpoint_filter_fn(weights, tower)
    if tower.patch_embed.proj.bias is not None:  # timm has one where no norm follows
        weights["patch_embed.proj.bias"] = torch.zeros(width)
    tower.load_state_dict(weights)
    return tower, arguments


def _activation(module: Any) -> str:
    approximate = getattr(module, "approximate", None)  # None: not torch's GELU
    return {"none": "gelu", "tanh": "gelu_tanh", None: "quick_gelu"}[approximate]


def _pooled(visual: Any, images_B3HW: Tensor) -> Tensor:
    """Features [B, D] of the class token after the last norm, before the projection."""
    pooled_BD, _ = visual._pool(visual.transformer(visual._embeds(images_B3HW)))
    features: Tensor = pooled_BD
    return features


def _data_config(source: Source) -> dict[str, Any]:
    preprocess = source.preprocess
    squash = preprocess.get("resize_mode") == "squash"
    return {
        "input_size": [3, *source.image_size],
        "mean": list(preprocess["mean"]),
        "std": list(preprocess["std"]),
        "interpolation": preprocess.get("interpolation", "bicubic"),
        "crop_pct": 1.0,
        "crop_mode": "squash" if squash else "center",
    }
