"""A checkpoint in one shape, whatever it came from, and the inputs that exports are checked with.

open_clip has two classes for the same two towers: `CLIP`, whose text tower is spread over the
model, and `CustomTextCLIP`, which holds it as `text`. Everything here becomes the second.

Shapes: B pictures or texts, H and W pixels, L context length, E embedding.
"""

import copy
import pickle
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.models import towers

TEXTS = (  # of several lengths: the end of the text and the padding lie elsewhere in each
    "a",
    "A photo of two dogs.",
    "the red bus, seen from the left, at 9:45",
    "an old man's straw hat on a wooden table beside three green apples and a jug of water " * 3,
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A loaded checkpoint."""

    model: Any  # open_clip's CustomTextCLIP or CoCa, float32, in eval mode
    config: dict[str, Any]  # open_clip's model_cfg
    tokenizer: Any

    @property
    def preprocess(self) -> dict[str, Any]:
        """open_clip's preprocess_cfg."""
        return dict(self.model.visual.preprocess_cfg)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the image tower takes."""
        size = self.model.visual.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def image_tower_is_ours(self) -> bool:
        """Whether the image tower is known only where `capwright.models` is imported."""
        return str(self.config["vision_cfg"].get("timm_model_name", "")).startswith("capwright_")

    @cached_property
    def images_B3HW(self) -> Tensor:
        """Three random pictures, the same in every run."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(3, 3, *self.image_size, generator=generator)

    @cached_property
    def tokens_BL(self) -> Tensor:
        """TEXTS as the checkpoint's tokenizer has them."""
        tokens: Tensor = self.tokenizer(list(TEXTS))
        return tokens

    @torch.no_grad()
    def image_embeddings(self) -> Tensor:
        """Embeddings [B, E] of `images_B3HW`, not normalised."""
        embedded: Tensor = self.model.encode_image(self.images_B3HW, normalize=False)
        return embedded

    @torch.no_grad()
    def text_embeddings(self) -> Tensor:
        """Embeddings [B, E] of TEXTS, not normalised."""
        embedded: Tensor = self.model.encode_text(self.tokens_BL, normalize=False)
        return embedded


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two entries; relative to the largest entry where that exceeds 1."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} against {tuple(expected.shape)}"
    scale = max(1.0, float(expected.abs().max()))
    return float((found.float() - expected.float()).abs().max()) / scale


def load_source(checkpoint: str, model: str | None = None) -> Source:
    """Load a checkpoint; `model` names the model of a `.pt` file.

    Raises CapwrightError where there is no checkpoint or its weights do not fit.
    """
    if model is not None:
        return _from_training_file(Path(checkpoint), model)
    loaded, _, tokenizer = towers.load(checkpoint)
    config = _config_of(checkpoint)
    return Source(model=_in_one_shape(loaded, config), config=config, tokenizer=tokenizer)


def _config_of(checkpoint: str) -> dict[str, Any]:
    if checkpoint.startswith("hf-hub:"):
        from huggingface_hub import hf_hub_download

        repository, _, revision = checkpoint.removeprefix("hf-hub:").partition("@")
        file = hf_hub_download(repository, towers.CONFIG_FILE, revision=revision or None)
        return towers.model_config(read_json(Path(file))["model_cfg"])
    folder = Path(checkpoint.removeprefix("local-dir:"))
    for candidate in (folder, folder / "checkpoints" / "last"):
        if (candidate / towers.CONFIG_FILE).is_file():
            return towers.model_config(read_json(candidate / towers.CONFIG_FILE)["model_cfg"])
    return towers.model_config(checkpoint.rpartition("/")[0])


def _in_one_shape(model: Any, config: dict[str, Any]) -> Any:
    if not isinstance(model, open_clip.CLIP):
        return model
    same = _build(config)
    same.load_state_dict(convert_to_custom_text_state_dict(model.state_dict()))
    open_clip.set_model_preprocess_cfg(same, model.visual.preprocess_cfg)
    return same


def _from_training_file(path: Path, name: str) -> Source:
    described = read_json(Path(name)) if name.endswith(".json") else name
    config = towers.model_config(
        described.get("model_cfg", described) if isinstance(described, dict) else described
    )
    model = _build(config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about files that it is about to refuse
            open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except FileNotFoundError:
        raise CapwrightError(f"{path} does not exist: name a .pt file that is there") from None
    except pickle.UnpicklingError:
        raise CapwrightError(
            f"{path} holds more than weights, and code from a file is never run: save its "
            '"state_dict" alone with torch.save and export that'
        ) from None
    except (RuntimeError, KeyError, AttributeError, AssertionError, StopIteration) as error:
        raise CapwrightError(
            f"{path} does not fit the model {name} ({str(error).splitlines()[0]} …): "
            "give the --model that it was trained with"
        ) from error
    known = name in open_clip.list_models()
    tokenizer = (
        open_clip.get_tokenizer(name)
        if known
        else open_clip.SimpleTokenizer(context_length=model.context_length)
    )
    return Source(model=model, config=config, tokenizer=tokenizer)


def _build(config: dict[str, Any]) -> Any:
    """Build without fetching pretrained parts: all weights come from the checkpoint."""
    config = copy.deepcopy(config)
    config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    return towers.build(config).eval()
