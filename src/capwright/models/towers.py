"""CLIP models by name or configuration, with dense features; open_clip and timm build them.

Reads checkpoint folders in open_clip's form (`open_clip_config.json` beside
`open_clip_model.safetensors`). A configuration is open_clip's: `{"embed_dim", "vision_cfg",
"text_cfg"}`, with any timm backbone as `vision_cfg.timm_model_name`; a name is "nano" or "nano-mci"
(this project's small models), any of open_clip's ("ViT-B-32"), a JSON file, or a checkpoint.

Every other file computes embeddings through `encode_image`, `encode_text`, `embed_with_patches` and
`dense_features`: they take images of any size that the tower can (`image_sizes.py`), leave out work
that cannot reach the output (`text_groups.py`, `pooled_position.py`) and never normalise.

Shapes: B pictures, H and W pixels, h and w tokens down and across, D features of a token,
L context length, K kept patches, E embedding.
"""

import copy
import difflib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.models import pooled_position, text_groups
from capwright.models.image_sizes import allow_any_size, at_size

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
RESNET_LAYERS = 5  # of open_clip's own: the stem and four stages

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
OWN: Mapping[str, Mapping[str, Any]] = {
    "nano": NANO,
    "nano-mci": {
        **NANO,
        "vision_cfg": {**NANO["vision_cfg"], "timm_model_name": "capwright_mci_nano_s8"},
    },
}


def model_config(name_or_config: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return a fresh open_clip configuration for a name, a JSON file, a checkpoint or a mapping.

    Patch dropout is taken out: in training the kept patches come from outside (`kept_tokens`).
    Raises CapwrightError for an unknown name or a configuration without its three parts.
    """
    if isinstance(name_or_config, Mapping):
        config = dict(name_or_config)
    else:
        config = _named_config(str(name_or_config))
    missing = [part for part in ("embed_dim", "vision_cfg", "text_cfg") if part not in config]
    if missing:
        raise CapwrightError(
            f"the model configuration has no {', '.join(missing)}: "
            "it needs embed_dim, vision_cfg and text_cfg as in open_clip's model_configs"
        )
    config = copy.deepcopy(config)
    config["vision_cfg"].pop("patch_dropout", None)
    config["custom_text"] = True  # one form of the text tower, whose positions can be trimmed
    return config


def _named_config(name: str) -> dict[str, Any]:
    if name in OWN:
        return dict(OWN[name])
    found: dict[str, Any] | None
    if name.startswith("hf-hub:"):
        try:
            with quiet_open_clip():
                found = open_clip.get_model_config(name)
        except (OSError, RuntimeError, ValueError) as error:
            raise CapwrightError(
                f"model {name!r} cannot be fetched ({error}): check the name and the connection"
            ) from error
    else:
        file = config_file(name) or (Path(name) if name.endswith(".json") else None)
        found = read_config(file) if file else open_clip.get_model_config(name)
    if found is None:
        names = [*OWN, *open_clip.list_models()]
        near = difflib.get_close_matches(name, names, n=3) or ["nano", "ViT-B-32"]
        raise CapwrightError(
            f"model {name!r} is unknown: did you mean {' or '.join(map(repr, near))}? "
            "`open_clip.list_models()` lists the others, and a configuration, a JSON file or a "
            "checkpoint folder works too"
        )
    return found


def read_config(file: Path) -> dict[str, Any]:
    """The model's part of a JSON file; CapwrightError for one that cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        config: dict[str, Any] = dict(content.get("model_cfg", content))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CapwrightError(
            f"model file {str(file)!r} cannot be read ({error}): "
            "expected a JSON object with embed_dim, vision_cfg and text_cfg"
        ) from error
    return config


def build(name_or_config: str | Path | Mapping[str, Any]) -> Any:
    """Build an untrained open_clip model; its weights come from torch's random state.

    A timm vision transformer keeps its positions at its own size, so that open_clip reads the
    checkpoints, and interpolates them to `image_size` in every pass. open_clip alone, on such a
    checkpoint at another size than timm's, needs `force_image_size=` to do the same.
    """
    config = model_config(name_or_config)
    config.pop("custom_text")
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        model = kind(**config)
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        raise CapwrightError(
            f"the model configuration cannot be built ({error}): "
            "compare it with open_clip's model_configs"
        ) from error
    if hasattr(model, "text_decoder"):  # open_clip leaves this one as the memory is
        with torch.random.fork_rng(devices=[]):
            nn.init.normal_(model.text_decoder.text_projection, std=model.text_decoder.width**-0.5)
    allow_any_size(model.visual)
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
    name, tag = resolve(folder_or_tag)
    known = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    with quiet_open_clip():
        model, _, preprocess = open_clip.create_model_and_transforms(
            name,
            pretrained=tag,
            # ViT-B-32/openai names a model with GELU, but its weights are of the other one
            force_quick_gelu=bool((known or {}).get("quick_gelu")),
        )
        tokenizer = open_clip.get_tokenizer(name)
    allow_any_size(model.visual)
    return model.eval(), preprocess, tokenizer


def config_file(folder: str | Path) -> Path | None:
    """The configuration in a checkpoint folder, or in the last checkpoint of a run folder."""
    place = Path(str(folder).removeprefix("local-dir:"))
    for candidate in (place / CONFIG_FILE, place / "checkpoints" / "last" / CONFIG_FILE):
        if candidate.is_file():
            return candidate
    return None


def resolve(folder_or_tag: str | Path) -> tuple[str, str | None]:
    """(name, tag) as `open_clip.create_model_and_transforms` takes them.

    Raises CapwrightError for what is no checkpoint.
    """
    text = str(folder_or_tag)
    if text.startswith("hf-hub:"):
        return text, None
    file = config_file(text)
    if file:
        return f"local-dir:{file.parent}", None
    model, _, tag = text.rpartition("/")
    if tag and tag in open_clip.list_pretrained_tags_by_model(model):
        return model, tag
    raise CapwrightError(
        f"no checkpoint at {text!r}: expected a folder with {CONFIG_FILE}, a run folder of "
        "`capwright pretrain`, hf-hub:ORG/REPOSITORY or an open_clip MODEL/TAG"
    )


def encode_image(model: Any, images_B3HW: Tensor) -> Tensor:
    """Embed pictures, [B, E], not normalised; inside `kept_tokens` from the kept patches alone."""
    visual = getattr(model, "visual", model)
    with at_size(visual, *images_B3HW.shape[-2:]):
        if pooled_position.pools_class_token(visual):
            return pooled_position.embed_by_class_token(visual, images_B3HW)
        embedded = visual(_in_order(images_B3HW))
    image_BE: Tensor = embedded[0] if isinstance(embedded, tuple) else embedded  # CoCa adds tokens
    return image_BE


def embed_with_patches(model: Any, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """What `encode_image` and the last `dense_features` give, [B, E] and [B, D, h, w], in one pass.

    All patches are needed: it does not work inside `kept_tokens`.
    """
    return _forward(model, images_B3HW, -1, pooled=True)


def dense_features(model: Any, images_B3HW: Tensor, layer: int | None = None) -> Tensor:
    """Features on the grid of a layer, [B, D, h, w]; differentiable.

    `layer` counts from 0, negative from the end (None is the last): the blocks of a vision
    transformer, or the stages of ConvNeXt and FastViT (MCi) and of a ResNet, whose stage 0 is
    the stem. A vision transformer's features pass its final norm at every depth, and
    ConvNeXt's at the last; CoCa's do not (its norm follows an attention pool), nor do those of
    networks that have no final norm. Works for open_clip's own towers, timm towers inside
    open_clip, and bare timm models. Raises CapwrightError for a layer that does not exist.
    """
    return _forward(model, images_B3HW, -1 if layer is None else layer, pooled=False)[1]


def layers(model: Any) -> int:
    """How many layers `dense_features` knows of the image tower."""
    visual = getattr(model, "visual", model)
    trunk = getattr(visual, "trunk", visual)
    if hasattr(trunk, "feature_info"):  # timm
        return len(trunk.feature_info)
    return len(visual.transformer.resblocks) if hasattr(visual, "transformer") else RESNET_LAYERS


def patch_features(model: Any, images_B3HW: Tensor) -> Tensor:
    """Features of the kept patches, [B, K, D], after the final norm (see `kept_tokens`)."""
    return _forward(model, images_B3HW, -1, pooled=False, form="NLC")[1]


def _forward(
    model: Any, images_B3HW: Tensor, layer: int, *, pooled: bool, form: str = "NCHW"
) -> tuple[Any, Tensor]:
    """(embedding or None where not `pooled`, features of a layer)."""
    visual, count = getattr(model, "visual", model), layers(model)
    if not -count <= layer < count:
        raise CapwrightError(
            f"layer {layer} does not exist: the image tower has {count} layers, "
            f"so choose 0 to {count - 1}, or -1 to -{count} from the end"
        )
    options: dict[str, Any] = {
        "indices": [layer],
        "output_fmt": form,
        "intermediates_only": not pooled,
        "stop_early": not pooled,
    }
    images_B3HW = _in_order(images_B3HW)
    with at_size(visual, *images_B3HW.shape[-2:]):
        if hasattr(visual, "feature_info"):  # a timm model on its own
            out = visual.forward_intermediates(images_B3HW, norm=True, **options)
            return (visual.forward_head(out[0]), out[1][-1]) if pooled else (None, out[-1])
        # CoCa normalises what an attention pool gives, in another width: its patches have no norm
        norm = getattr(visual, "attn_pool", None) is None
        out = visual.forward_intermediates(images_B3HW, normalize_intermediates=norm, **options)
        return out.get("image_features"), out["image_intermediates"][-1]


def _in_order(images_B3HW: Tensor) -> Tensor:
    """The pictures with their channels first in memory, too.

    On a processor the backward pass of small depthwise convolutions on pictures with channels last
    corrupts the heap (seen with PyTorch 2.14 and the small MCi tower).
    """
    return images_B3HW.contiguous() if images_B3HW.device.type == "cpu" else images_B3HW


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
    """Embed texts, [B, E], not normalised, without computing what cannot reach the output.

    In a causal tower that pools at the end of the text nothing after it can reach the output, so
    the result is that of `model.encode_text(tokens_BL)`; other towers get every position.
    Without texts it is empty, after a pass of one that is blank: processes with shards must pass
    each block equally often.
    """
    if not len(tokens_BL):
        return encode_text(model, tokens_BL.new_zeros(1, tokens_BL.shape[1]))[:0]
    tower = getattr(model, "text", None)
    end_B = text_groups.ends(tower, tokens_BL)
    if end_B is None:
        whole: Tensor = model.encode_text(tokens_BL, normalize=False)
        return whole
    return text_groups.encode(tower, tokens_BL, end_B)


@contextmanager
def quiet_open_clip() -> Iterator[None]:
    """Keep open_clip's log lines to itself."""
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
