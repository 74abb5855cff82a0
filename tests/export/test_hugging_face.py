"""`transformers.CLIPModel` folders give the checkpoint's embeddings, or are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, CLIPModel

from capwright.core.errors import CapwrightError
from capwright.export import ExportConfig, run
from capwright.models import towers

Make = Callable[..., Path]

TEXTS = ["a", "a red bus", "Two dogs, on a table!", "the old man and a jug of water " * 4]


def export(checkpoint: Path, out: Path) -> Any:
    return run(ExportConfig(checkpoint=str(checkpoint), to="huggingface", out=out))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quick_gelu": True},
        {"words": True},
        {"vision": {"image_size": 16, "patch_size": 8, "width": 24, "layers": 1, "head_width": 8}},
        {"text": {"act_kwargs": {"approximate": "tanh"}}},
        {"text": {"pool_type": "eos", "eos_id": 49407}},
        {"init_logit_bias": -10.0},
    ],
    ids=["plain", "quick gelu", "words", "other sizes", "tanh gelu", "eos", "bias"],
)
def test_embeddings_are_those_of_the_checkpoint(
    options: dict[str, Any], make: Make, tmp_path: Path
) -> None:
    checkpoint, out = make(**options), tmp_path / "out"
    summary = export(checkpoint, out)
    assert summary.largest_difference < 1e-5
    model, _, tokenize = towers.load(checkpoint)
    theirs = CLIPModel.from_pretrained(out).eval()
    tokens = AutoTokenizer.from_pretrained(out)(
        TEXTS, padding="max_length", truncation=True, return_tensors="pt"
    )
    assert tokens["input_ids"].shape == (4, 12)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        found = theirs(pixel_values=images, **tokens)
        image = F.normalize(model.encode_image(images), dim=1)
        text = F.normalize(model.encode_text(tokenize(TEXTS)), dim=1)
    assert torch.allclose(found.image_embeds, image, rtol=0, atol=1e-5)
    assert torch.allclose(found.text_embeds, text, rtol=0, atol=1e-5)
    assert torch.allclose(
        found.logits_per_image, model.logit_scale.exp() * image @ text.T, rtol=1e-4, atol=1e-4
    )
    assert float((text[0] - text[1]).abs().max()) > 0.01  # the texts are told apart
    assert any("logit bias (here -10)" in note for note in summary.notes) == (
        "init_logit_bias" in options
    )


def test_the_swapped_end_is_needed(make: Make, tmp_path: Path) -> None:
    """With id 2 for the end CLIPModel would pool at the largest id instead."""
    checkpoint = make(words=True)
    export(checkpoint, tmp_path / "out")
    theirs = CLIPModel.from_pretrained(tmp_path / "out")
    _, _, tokenize = towers.load(checkpoint)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")(["a red bus"])["input_ids"][0]
    ours = tokenize(["a red bus"])[0].tolist()
    assert ours[: len(tokens)][:-1] == tokens[:-1]
    assert ours[len(tokens) - 1] == 2
    assert tokens[-1] == theirs.config.text_config.eos_token_id == len(tokenize.tokenizer) - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "interpolation"), [("shortest", "bicubic"), ("squash", "bilinear")]
)
def test_pictures_are_prepared_alike(
    mode: str, interpolation: str, make: Make, tmp_path: Path
) -> None:
    checkpoint = make(preprocess={"resize_mode": mode, "interpolation": interpolation})
    export(checkpoint, tmp_path / "out")
    gradient = np.linspace(0, 255, 40 * 24 * 3).reshape(40, 24, 3).astype(np.uint8)
    picture = Image.fromarray(gradient)
    _, preprocess, _ = towers.load(checkpoint)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(images=picture, text=["a"], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    # PIL and torchvision round differently: at most two of 255 grey values
    assert (inputs["pixel_values"][0] - preprocess(picture)).abs().max() < 2 / 255 / 0.26


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (
            {"vision": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}},
            "the image tower is timm's vit_tiny_patch16_224",
        ),
        (
            {
                "vision": {
                    "layers": [1, 1, 1, 1],
                    "width": 8,
                    "image_size": 32,
                    "head_width": 8,
                }
            },
            "the image tower is a ModifiedResNet",
        ),
        ({"vision": {"no_ln_pre": True}}, "the image tower has no norm before its blocks"),
        ({"vision": {"attentional_pool": True}}, "the image tower pools by attention"),
        ({"vision": {"pool_type": "avg"}}, "the image tower pools by 'avg'"),
        ({"vision": {"ls_init_value": 0.1}}, "the image tower has layer scale"),
        ({"vision": {"qk_norm": True}}, "the image tower has blocks of the kind Custom"),
        ({"text": {"no_causal_mask": True}}, "the text tower is not causal"),
        ({"text": {"embed_cls": True}}, "the text tower pools a class token"),
        ({"text": {"proj_type": "none"}}, "the text tower has no projection"),
        ({"text": {"proj_bias": True}}, "the text tower has a projection with a bias"),
        ({"text": {"pool_type": "last"}}, "the text tower pools by 'last'"),
        ({"preprocess": {"resize_mode": "longest"}}, "the preprocessing resizes by 'longest'"),
        (
            {"text": {"tokenizer_kwargs": {"clean": "canonicalize"}}},
            "the tokenizer cleans or cuts texts in its own way",
        ),
    ],
)
def test_what_clip_model_is_not_is_refused(
    options: dict[str, Any], what: str, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(CapwrightError, match=f"^{what}.*use --to open_clip"):
        export(make(**options), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
