"""CLIP models by name or configuration, with dense features; open_clip and timm build them.

Reads checkpoint folders in open_clip's form (`open_clip_config.json` beside
`open_clip_model.safetensors`). A configuration is open_clip's: `{"embed_dim", "vision_cfg",
"text_cfg"}`; a name is "nano" (this project's small model) or any of open_clip's ("ViT-B-32").

Shapes: B pictures, H and W pixels, h and w tokens down and across, D features of a token,
L context length, l the longest text of a batch, E embedding.
"""

import copy
import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from capwright.core.errors import CapwrightError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"

NANO: Mapping[str, Any] = {
    "embed_dim": 128,
    "custom_text": True,
    "vision_cfg": {
        "timm_model_name": "capwright_vit_nano_s8",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 128,
        "heads": 4,
        "layers": 2,
    },
}


def model_config(name_or_config: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return a fresh open_clip configuration for a name ("nano", "ViT-B-32") or a configuration.

    Patch dropout is taken out: in training the kept patches come from outside (`kept_tokens`).
    Raises CapwrightError for an unknown name or a configuration without its three parts.
    """
    if isinstance(name_or_config, str):
        config = NANO if name_or_config == "nano" else open_clip.get_model_config(name_or_config)
        if config is None:
            names = ["nano", *open_clip.list_models()]
            near = difflib.get_close_matches(name_or_config, names, n=3) or ["nano", "ViT-B-32"]
            raise CapwrightError(
                f"model {name_or_config!r} is unknown: "
                f"did you mean {' or '.join(map(repr, near))}? "
                "`open_clip.list_models()` lists the others, and a configuration works too"
            )
    else:
        config = dict(name_or_config)
    missing = [part for part in ("embed_dim", "vision_cfg", "text_cfg") if part not in config]
    if missing:
        raise CapwrightError(
            f"the model configuration has no {', '.join(missing)}: "
            "it needs embed_dim, vision_cfg and text_cfg as in open_clip's model_configs"
        )
    config = copy.deepcopy(dict(config))
    config["vision_cfg"].pop("patch_dropout", None)
    config["custom_text"] = True  # one form of the text tower, whose positions can be trimmed
    return config


def build(name_or_config: str | Mapping[str, Any]) -> Any:
    """Build an untrained open_clip model; its weights come from torch's random state."""
    config = model_config(name_or_config)
    config.pop("custom_text")
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        model = kind(**config)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise CapwrightError(
            f"the model configuration cannot be built ({error}): "
            "compare it with open_clip's model_configs"
        ) from error
    open_clip.set_model_preprocess_cfg(model, preprocess_config(config))
    return model


def preprocess_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's preprocessing for a model configuration; pictures are squashed by nothing."""
    return {
        "size": config["vision_cfg"].get("image_size", 224),
        "mode": "RGB",
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }


def load(folder_or_tag: str | Path) -> tuple[Any, Any, Any]:
    """Load a checkpoint: (model in eval mode, preprocessing of a PIL picture, tokenizer).

    `folder_or_tag` is a checkpoint folder, a run folder of `capwright pretrain` (its last
    checkpoint is taken), `hf-hub:ORG/REPOSITORY`, or open_clip's `MODEL/TAG` (`ViT-B-32/openai`).
    Raises CapwrightError where there is none.
    """
    name, tag = _resolve(folder_or_tag)
    with _quiet_open_clip():
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=tag)
        tokenizer = open_clip.get_tokenizer(name)
    return model.eval(), preprocess, tokenizer


def _resolve(folder_or_tag: str | Path) -> tuple[str, str | None]:
    text = str(folder_or_tag)
    if text.startswith("hf-hub:"):
        return text, None
    folder = Path(text.removeprefix("local-dir:"))
    for candidate in (folder, folder / "checkpoints" / "last"):
        if (candidate / CONFIG_FILE).is_file():
            return f"local-dir:{candidate}", None
    model, _, tag = text.rpartition("/")
    if tag and tag in open_clip.list_pretrained_tags_by_model(model):
        return model, tag
    raise CapwrightError(
        f"no checkpoint at {text!r}: expected a folder with {CONFIG_FILE}, a run folder of "
        "`capwright pretrain`, hf-hub:ORG/REPOSITORY or an open_clip MODEL/TAG"
    )


def dense_features(model: Any, images_B3HW: Tensor, layer: int | None = None) -> Tensor:
    """Features of every patch, [B, D, h, w], after the tower's final norm; differentiable.

    `layer` counts transformer blocks (or stages) from 0, negative from the end; None is the last.
    Works for open_clip's own towers, timm towers inside open_clip, and bare timm models.
    """
    return _intermediate(model, images_B3HW, -1 if layer is None else layer, "NCHW")


def patch_features(model: Any, images_B3HW: Tensor) -> Tensor:
    """Features of the kept patches, [B, K, D], after the final norm (see `kept_tokens`)."""
    return _intermediate(model, images_B3HW, -1, "NLC")


def _intermediate(model: Any, images_B3HW: Tensor, layer: int, form: str) -> Tensor:
    visual = getattr(model, "visual", model)
    options = {
        "indices": [layer],
        "stop_early": True,
        "intermediates_only": True,
        "output_fmt": form,
    }
    if visual is model and not hasattr(model, "image_size"):  # a timm model on its own
        maps = visual.forward_intermediates(images_B3HW, norm=True, **options)
    else:
        # CoCa normalises what an attention pool gives, in another width: its patches have no norm
        norm = getattr(visual, "attn_pool", None) is None
        out = visual.forward_intermediates(images_B3HW, normalize_intermediates=norm, **options)
        maps = out["image_intermediates"]
    features: Tensor = maps[-1]
    return features


@torch.no_grad()
def grid(model: Any, image_size: int) -> tuple[int, int, int]:
    """(h, w, D) of the dense features of a square picture."""
    was_training = model.training
    parameter = next(model.parameters())
    blank = torch.zeros(
        1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype
    )
    try:
        _, depth, height, width = dense_features(model.eval(), blank).shape
    finally:
        model.train(was_training)
    return height, width, depth


def image_mean(model: Any) -> tuple[float, float, float]:
    """Mean of the channels, on a scale of 0 to 1, that the tower expects to be subtracted."""
    return tuple(model.visual.image_mean)


def image_std(model: Any) -> tuple[float, float, float]:
    """Deviation of the channels, on a scale of 0 to 1, that the tower expects to be divided by."""
    return tuple(model.visual.image_std)


def encode_text(model: Any, tokens_BL: Tensor) -> Tensor:
    """Embed texts, [B, E], computing no position after the end of the longest text of the batch.

    In a causal tower that pools at the end of the text nothing after it can reach the output, so
    the result is that of `model.encode_text(tokens_BL)`; other towers get every position.
    """
    length = trimmed_length(model, tokens_BL)
    if length == tokens_BL.shape[1]:
        embedded: Tensor = model.encode_text(tokens_BL)
        return embedded
    tower, mask_LL = model.text, model.text.attn_mask
    tower.attn_mask = mask_LL[:length, :length]  # open_clip trims the positions but not the mask
    try:
        embedded = model.encode_text(tokens_BL[:, :length].contiguous())
    finally:
        tower.attn_mask = mask_LL
    return embedded


def trimmed_length(model: Any, tokens_BL: Tensor) -> int:
    """How many positions of `tokens_BL` can reach the output of the text tower."""
    tower: Any = getattr(model, "text", None)
    causal = isinstance(tower, TextTransformer) and tower.attn_mask is not None
    if not causal or tower.cls_emb is not None or tower.output_tokens:
        return tokens_BL.shape[1]
    if tower.pool_type == "argmax":
        end_B = tokens_BL.argmax(dim=1)
    elif tower.pool_type == "eos":
        end_B = (tokens_BL == tower.eos_id).int().argmax(dim=1)
    else:
        return tokens_BL.shape[1]
    return int(end_B.max()) + 1


def use_plain_attention(model: nn.Module) -> None:
    """Turn off fused attention in timm towers.

    On a CPU the fused kernel takes 60% of the step at 32 tokens, most of it in the backward pass;
    with plain matrix products the whole step is twice as fast in bfloat16.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    # open_clip logs through the root logger, and its first line would configure it for everybody
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.addHandler(logging.NullHandler())
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers = handlers
