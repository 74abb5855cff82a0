"""Captioners of Hugging Face transformers from a hub id or a folder: loaded, told apart, or refused
in a sentence.

Reads: config.json, safetensors and the files of the processor. Code that comes with a model runs
only if its user says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from capwright.captions.describe.local_models import (
    Precision,
    folder_revision,
    pick_dtype,
)
from capwright.core.errors import CapwrightError
from capwright.models.devices import pick_device


@dataclass(frozen=True)
class Loaded:
    """A model with its processor."""

    kind: str
    """transformers' `model_type`."""
    model: Any
    processor: Any
    """Takes pictures and text; None where pictures and words have a processor each."""
    image_processor: Any
    tokenizer: Any
    revision: str

    @property
    def chats(self) -> bool:
        """Whether questions are put through a chat template."""
        return bool(
            getattr(self.processor, "chat_template", None)
            or (self.processor and getattr(self.tokenizer, "chat_template", None))
        )


def load_captioner(
    name: str, *, revision: str, trust_remote_code: bool, device: str, precision: Precision
) -> Loaded:
    """Load a model that describes pictures; CapwrightError where there is none of that name."""
    import transformers

    place = pick_device(device)
    where = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        described = transformers.AutoConfig.from_pretrained(name, **where)
        factory = _model_class(described, name, trust_remote_code)
        dtype = pick_dtype(precision, place)
        model = factory.from_pretrained(name, config=described, dtype=dtype, **where)
        image_processor, tokenizer, processor = _processors(name, where)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        raise _not_loaded(name, error) from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    folder = Path(name)
    commit = getattr(described, "_commit_hash", None) or ""
    return Loaded(
        kind=described.model_type,
        model=model.to(place).eval().requires_grad_(False),
        processor=processor,
        image_processor=image_processor,
        tokenizer=tokenizer,
        revision=folder_revision(folder) if folder.is_dir() else commit,
    )


def _not_loaded(name: str, error: Exception) -> CapwrightError:
    reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
    if "trust_remote_code" in str(error):
        way_out = "set trust_remote_code=true if you have read the code that comes with it"
    else:
        way_out = (
            "give the hub id of an image-to-text model, or a folder with config.json, "
            "safetensors and the processor's files"
        )
    kind = type(error).__name__
    return CapwrightError(f"model {name!r} could not be loaded ({kind}: {reason}): {way_out}")


def _model_class(described: Any, name: str, trust: bool) -> Any:
    """The class that loads the model; CapwrightError for one that takes no pictures."""
    import transformers

    own = getattr(described, "auto_map", None) or {}
    for kind in ("AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForCausalLM"):
        if trust and kind in own:
            return getattr(transformers, kind)
    factory = transformers.AutoModelForImageTextToText
    if type(described) not in factory._model_mapping:
        raise CapwrightError(
            f"model {name!r} is a {described.model_type}, which describes no pictures: give an "
            "image-to-text model (BLIP, GIT, Florence-2, SmolVLM, Qwen-VL, LLaVA), or set "
            "trust_remote_code=true if its own code does and you trust it"
        )
    return factory


def _processors(name: str, where: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(image processor, tokenizer, processor of both or None)."""
    import transformers

    try:
        both = transformers.AutoProcessor.from_pretrained(name, **where)
    except ValueError:  # there is none for this kind of model
        both = None
    if hasattr(both, "image_processor") and hasattr(both, "tokenizer"):
        return both.image_processor, both.tokenizer, both
    images = transformers.AutoImageProcessor.from_pretrained(name, **where)
    return images, transformers.AutoTokenizer.from_pretrained(name, **where), None
