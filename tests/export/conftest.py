"""Checkpoint folders of tiny models with random weights, as pretraining writes them."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from capwright.core.files import write_json
from capwright.models import text, towers

SIDE = 16
TEXT: dict[str, Any] = {"context_length": 12, "width": 16, "heads": 2, "layers": 2}
VIT: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 4,
    "width": 16,
    "layers": 2,
    "head_width": 8,
    "attn_pooler_heads": 2,
}
CAPTIONS = ("a photo of a red bus", "two dogs on a wooden table", "the old man and a jug of water")

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(vision={...}, text={...}, words=False, preprocess={...}, **top)` -> folder.

    `vision` and `text` change parts of VIT and TEXT; a whole tower of another kind replaces VIT.
    """

    def checkpoint(
        *,
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        words: bool = False,
        preprocess: dict[str, Any] | None = None,
        **top: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        config = {
            "embed_dim": 16,
            "vision_cfg": VIT | (vision or {}) if _is_vit(vision) else vision,
            "text_cfg": TEXT | (text or {}),
            **top,
        }
        return write_checkpoint(folder, config, words=words, preprocess=preprocess or {})

    return checkpoint


def _is_vit(vision: dict[str, Any] | None) -> bool:
    return not vision or not ("timm_model_name" in vision or isinstance(vision.get("layers"), list))


def write_checkpoint(
    folder: Path, config: dict[str, Any], *, words: bool, preprocess: dict[str, Any]
) -> Path:
    config = copy.deepcopy(config)
    if words:
        made = folder / "words"
        size = text.write_word_tokenizer(made, CAPTIONS, vocabulary=100, min_count=1)
        for file in made.iterdir():
            shutil.move(file, folder)
        made.rmdir()
        config["text_cfg"] |= text.word_text_config(size)
    config = towers.model_config(config)
    torch.manual_seed(0)
    model = towers.build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("visual", "text")) and parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.2)  # norms and biases that matter
        for name, buffer in model.named_buffers():  # of batch norms
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        model.logit_scale.fill_(3.0)
    save_file(model.state_dict(), folder / towers.WEIGHTS_FILE)
    write_json(
        folder / towers.CONFIG_FILE,
        {
            "model_cfg": config,
            "preprocess_cfg": towers.preprocess_config(config) | preprocess,
        },
    )
    return folder


@pytest.fixture(scope="session")
def plain(make: Make) -> Path:
    """open_clip's own towers with open_clip's tokenizer."""
    return make()


@pytest.fixture(scope="session")
def ours(make: Make) -> Path:
    """This project's image tower and a tokenizer of words."""
    vision = {"timm_model_name": "capwright_vit_nano_s8", "image_size": SIDE, "timm_pool": "avg"}
    return make(vision=vision, words=True)
