"""A `transformers.CLIPModel` folder: `transformers.CLIPModel.from_pretrained("DIR")`.

Writes `config.json`, `model.safetensors`, `preprocessor_config.json` and a tokenizer. CLIPModel is
OpenAI's architecture: a vision transformer with a class token, a norm before its blocks and a
projection, and a causal text transformer that is pooled at the end-of-text token. A checkpoint
with anything else is refused.

CLIPModel pools at the first `eos_token_id`, except that it takes the largest id of the text where
`eos_token_id` is 2 (its rule for old folders). A word tokenizer of this project ends a text with 2,
so there the ids of the end token and of the last word change places, in the tokenizer and in the
embedding.

Shapes: V vocabulary, W width of a tower, E embedding, B pictures or texts, L context length.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.export import Written
from capwright.export.blocks import unusual_blocks
from capwright.export.hf_tokenizer import end_id, write_tokenizer
from capwright.export.source import TEXTS, Source, difference

OLD_RULE_ID = 2  # with this eos_token_id CLIPModel pools at the largest id
LAYER = {  # open_clip's names inside a block, and Hugging Face's
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def write(source: Source, folder: Path) -> Written:
    """Write the folder and compare what transformers makes of it with the checkpoint."""
    fault = _fault(source)
    if fault:
        raise CapwrightError(
            f"{fault}, which Hugging Face's CLIPModel cannot be: "
            "use --to open_clip, or --to onnx to run it elsewhere"
        )
    text = source.model.text
    end = end_id(source)
    new_end = text.vocab_size - 1 if end == OLD_RULE_ID else end
    special = write_tokenizer(source, folder, swap=(end, new_end))
    weights = _weights(source.model)
    if new_end != end:
        _swap_rows(weights["text_model.embeddings.token_embedding.weight"], end, new_end)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _config(source, special | {"eos_token_id": new_end}).save_pretrained(folder)
    _image_processor(source.preprocess, source.image_size).save_pretrained(folder)
    notes = []
    if source.model.logit_bias is not None:
        notes.append(
            f"CLIPModel has no logit bias (here {source.model.logit_bias.item():.4g}): add it to "
            "the logits before a sigmoid; a softmax does not need it."
        )
    if new_end != end:
        notes.append(f"The end token has the id {new_end} instead of {end}; use this tokenizer.")
    return Written(
        load=(
            "from transformers import AutoProcessor, CLIPModel\n"
            'model = CLIPModel.from_pretrained("DIR")\n'
            'processor = AutoProcessor.from_pretrained("DIR")'
        ),
        largest_difference=_largest_difference(source, folder),
        notes=tuple(notes),
    )


def _fault(source: Source) -> str:
    """What CLIPModel does not have, as the beginning of a sentence; "" where there is nothing."""
    model, text = source.model, getattr(source.model, "text", None)
    if isinstance(model, open_clip.CoCa):
        return "the model is a CoCa with a decoder"
    fault = _image_fault(model.visual)
    if fault:
        return f"the image tower {fault}"
    if not isinstance(text, TextTransformer):
        return f"the text tower is a {type(text).__name__}"
    if text.cls_emb is not None:
        return "the text tower pools a class token"
    if text.attn_mask is None:
        return "the text tower is not causal"
    if text.pool_type not in ("argmax", "eos"):
        return f"the text tower pools by {text.pool_type!r} and not at the end of the text"
    if text.text_projection is None:
        return "the text tower has no projection"
    if getattr(text.text_projection, "bias", None) is not None:
        return "the text tower has a projection with a bias"
    unusual = unusual_blocks(text.transformer)
    if unusual:
        return f"the text tower {unusual}"
    if source.preprocess.get("resize_mode", "shortest") not in ("shortest", "squash"):
        return f"the preprocessing resizes by {source.preprocess['resize_mode']!r}"
    return ""


def _image_fault(visual: Any) -> str:
    if not isinstance(visual, VisionTransformer):
        name = getattr(getattr(visual, "trunk", visual), "default_cfg", {}).get("architecture")
        return f"is timm's {name}" if name else f"is a {type(visual).__name__}"
    if visual.attn_pool is not None:
        return "pools by attention"
    if visual.pool_type != "tok":
        return f"pools by {visual.pool_type!r} and not by the class token"
    if isinstance(visual.ln_pre, nn.Identity):
        return "has no norm before its blocks"
    if visual.proj is None:
        return "has no projection"
    if len({*visual.image_size}) > 1 or len({*visual.patch_size}) > 1:
        return f"takes pictures of {visual.image_size} in patches of {visual.patch_size}"
    return unusual_blocks(visual.transformer)


def _weights(model: Any) -> dict[str, Tensor]:
    """The state of an open_clip model under the names of CLIPModel."""
    state: dict[str, Tensor] = model.state_dict()
    weights = {
        "logit_scale": state["logit_scale"].reshape(()),
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text.text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state["text.token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["text.positional_embedding"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",  # Hugging Face spells it so
        "visual.ln_post": "vision_model.post_layernorm",
        "text.ln_final": "text_model.final_layer_norm",
    }
    for theirs, name in norms.items():
        for part in ("weight", "bias"):
            weights[f"{name}.{part}"] = state[f"{theirs}.{part}"]
    for tower, prefix in (("visual", "vision_model"), ("text", "text_model")):
        for i in range(len(getattr(model, tower).transformer.resblocks)):
            block = f"{tower}.transformer.resblocks.{i}."
            inner = {k.removeprefix(block): v for k, v in state.items() if k.startswith(block)}
            for name, value in _block(inner).items():
                weights[f"{prefix}.encoder.layers.{i}.{name}"] = value
    return {name: value.detach().float().contiguous().clone() for name, value in weights.items()}


def _block(inner: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One block; the joint matrix of queries, keys and values [3W, W] is cut in three."""
    weights = {}
    for part in ("weight", "bias"):
        for letter, value in zip("qkv", inner[f"attn.in_proj_{part}"].chunk(3), strict=True):
            weights[f"self_attn.{letter}_proj.{part}"] = value
        for theirs, name in LAYER.items():
            weights[f"{name}.{part}"] = inner[f"{theirs}.{part}"]
    return weights


def _swap_rows(matrix_VW: Tensor, a: int, b: int) -> None:
    matrix_VW[[a, b]] = matrix_VW[[b, a]]


def _config(source: Source, special: Mapping[str, int]) -> Any:
    from transformers import CLIPConfig

    visual, text = source.model.visual, source.model.text
    embedding = visual.output_dim
    return CLIPConfig(
        architectures=["CLIPModel"],
        projection_dim=embedding,
        logit_scale_init_value=source.model.logit_scale.item(),
        vision_config={
            **_transformer_config(visual.transformer, visual.ln_post),
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "projection_dim": embedding,
        },
        text_config={
            **_transformer_config(text.transformer, text.ln_final),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "projection_dim": embedding,
            **special,
        },
    )


def _transformer_config(transformer: Any, norm: nn.LayerNorm) -> dict[str, Any]:
    first = transformer.resblocks[0]
    tanh = getattr(first.mlp.gelu, "approximate", "none") == "tanh"
    gelu = "gelu_pytorch_tanh" if tanh else "gelu"
    return {
        "hidden_size": first.mlp.c_fc.in_features,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": "quick_gelu" if isinstance(first.mlp.gelu, QuickGELU) else gelu,
        "layer_norm_eps": norm.eps,
    }


def _image_processor(preprocess: Mapping[str, Any], size: tuple[int, int]) -> Any:
    from PIL import Image
    from transformers import CLIPImageProcessor

    height, width = size
    bilinear = preprocess.get("interpolation") == "bilinear"
    squash = preprocess.get("resize_mode") == "squash"
    return CLIPImageProcessor(
        size={"height": height, "width": width} if squash else {"shortest_edge": height},
        do_center_crop=not squash,
        crop_size={"height": height, "width": width},
        resample=Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC,
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
    )


@torch.no_grad()
def _largest_difference(source: Source, folder: Path) -> float:
    """Load the folder and compare pictures, and texts through the folder's own tokenizer."""
    from transformers import AutoTokenizer, CLIPModel

    model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
    faults = {kind: sorted(names) for kind, names in info.items() if names}
    assert not faults, f"weights and config differ: {json.dumps(faults)}"
    model = model.float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(list(TEXTS), padding=True, truncation=True, return_tensors="pt")
    outputs = model(
        pixel_values=source.images_B3HW,
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
    )
    return max(  # CLIPModel normalises what it calls embeddings
        difference(outputs.image_embeds, nn.functional.normalize(source.image_embeddings(), dim=1)),
        difference(outputs.text_embeds, nn.functional.normalize(source.text_embeddings(), dim=1)),
    )
