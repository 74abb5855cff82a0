"""Experts of Hugging Face transformers: what its pipelines `depth-estimation` and
`image-segmentation` load, from a hub id or a folder.

Reads: config.json, safetensors and the picture processor's files. Pictures go through the model's
own processor, and its own post-processing brings the answer to the size of the labels.

Segmentation is semantic: every pixel gets the likeliest class, whichever kind of model it is.
Depth is metric (metres) or relative (inverse, of unknown scale and shift: DPT, Depth Anything);
which one is a fact of the weights, so it is known for some kinds of models and asked for others.

Shapes: B pictures, S side of the pictures, L side of the labels.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from capwright.captions.describe.local_models import (
    Precision,
    folder_revision,
    out_of_memory,
    pick_dtype,
)
from capwright.core.errors import CapwrightError
from capwright.experts.protocol import Facts
from capwright.models.devices import pick_device
from capwright.pretrain.labels import IGNORE, MAX_CLASSES, METRIC, RELATIVE

METRIC_KINDS = ("glpn", "zoedepth", "depth_pro")
RELATIVE_KINDS = ("dpt",)
FACTORIES = {
    "depth": ("AutoModelForDepthEstimation",),
    "segmentation": ("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"),
}
EXAMPLES = {
    "depth": "DPT, Depth Anything, GLPN, ZoeDepth",
    "segmentation": "SegFormer, MaskFormer, Mask2Former, BEiT, UperNet",
}


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """Which model, and how it is read."""

    task: str
    name: str  # hub id or folder
    revision: str
    trust_remote_code: bool
    device: str
    precision: Precision
    picture_size: int

    @property
    def where(self) -> dict[str, Any]:
        """What every `from_pretrained` takes."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def facts(model: HubModel, depth_kind: str) -> Facts:
    """What config.json says; `depth_kind` is "auto" or what the user knows better."""
    described, _ = _described(model)
    folder = Path(model.name)
    revision = getattr(described, "_commit_hash", None) or model.revision
    return Facts(
        name=folder.resolve().name if folder.is_dir() else model.name,
        revision=folder_revision(folder) if folder.is_dir() else revision,
        classes=_classes(model, described) if model.task == "segmentation" else (),
        depth_kind=_depth_kind(model, described, depth_kind) if model.task == "depth" else "",
    )


class HubExpert:
    """An `Expert` for one task."""

    def __init__(self, model: HubModel, kind: str = METRIC) -> None:
        import transformers

        self.task, self.name, self.metric = model.task, model.name, kind == METRIC
        self.picture_size = model.picture_size
        device = pick_device(model.device)
        described, factory = _described(model)
        try:
            loaded = factory.from_pretrained(
                model.name, config=described, dtype=pick_dtype(model.precision, device),
                **model.where,
            )  # fmt: skip
            self.processor = transformers.AutoImageProcessor.from_pretrained(
                model.name, **model.where
            )
        except Exception as error:  # whatever is wrong with the files of some model
            raise _not_loaded(model, error) from error
        self.model = loaded.to(device).eval().requires_grad_(False)
        if getattr(self.processor, "do_center_crop", None):
            self.processor.do_center_crop = False  # labels are of the whole square
        self._finish = self._finisher()

    @torch.inference_mode()
    def label(
        self, pixels_BSS3: NDArray[np.uint8], size: int, tasks: Sequence[str]
    ) -> Mapping[str, NDArray[Any]]:
        """See `Expert`."""
        images = [Image.fromarray(pixels_SS3) for pixels_SS3 in pixels_BSS3]
        inputs = self.processor(images=images, return_tensors="pt")
        if "pixel_mask" in inputs and not inputs["pixel_mask"].all():
            raise CapwrightError(
                f"the processor of {self.name!r} pads pictures, so that labels would be displaced: "
                "set its size to a multiple of its size_divisor in preprocessor_config.json"
            )
        moved = {
            name: value.to(
                self.model.device, self.model.dtype if value.is_floating_point() else None
            )
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }
        try:
            outputs = self.model(**moved)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(len(images), error) from error
        maps = self._finish(outputs, len(images), size)
        values_BLL = (
            torch.stack([values.reshape(size, size) for values in maps]).float().cpu().numpy()
        )
        if self.task == "segmentation":
            inside = (values_BLL >= 0) & (values_BLL < MAX_CLASSES)
            return {"segmentation": np.where(inside, values_BLL, IGNORE).astype(np.uint8)}
        if self.metric:
            values_BLL = np.where(values_BLL > 0, values_BLL, np.nan)
        return {"depth": values_BLL}

    def _finisher(self) -> Callable[[Any, int, int], Sequence[Tensor]]:
        """The processor's function that brings outputs to [L, L] for each picture."""
        kind = "depth_estimation" if self.task == "depth" else "semantic_segmentation"
        finish = getattr(self.processor, f"post_process_{kind}", None)
        if finish is None:
            raise CapwrightError(
                f"the picture processor of {self.name!r} ({type(self.processor).__name__}) has no "
                f"post_process_{kind}: give a model for {self.task} such as {EXAMPLES[self.task]}"
            )
        takes = inspect.signature(finish).parameters
        source = self.picture_size

        def finished(outputs: Any, count: int, size: int) -> Sequence[Tensor]:
            sizes = {"target_sizes": [(size, size)] * count}
            if "source_sizes" in takes:
                sizes["source_sizes"] = [(source, source)] * count
            found = finish(outputs, **sizes)
            return [one["predicted_depth"] for one in found] if self.task == "depth" else found

        return finished


def _described(model: HubModel) -> tuple[Any, Any]:
    """The model's configuration, and the class that loads it."""
    import transformers

    try:
        described = transformers.AutoConfig.from_pretrained(model.name, **model.where)
    except Exception as error:  # whatever is wrong with the files of some model
        raise _not_loaded(model, error) from error
    if described.model_type == "oneformer":
        raise CapwrightError(
            f"model {model.name!r} is a OneFormer, which wants its task in words: "
            f"give another model for segmentation, such as {EXAMPLES['segmentation']}"
        )
    own = getattr(described, "auto_map", None) or {}
    for name in FACTORIES[model.task]:
        factory = getattr(transformers, name)
        if type(described) in factory._model_mapping or (model.trust_remote_code and name in own):
            return described, factory
    raise CapwrightError(
        f"model {model.name!r} is a {described.model_type}, which does no {model.task}: "
        f"give a model such as {EXAMPLES[model.task]}"
    )


def _classes(model: HubModel, described: Any) -> tuple[str, ...]:
    names = {int(number): str(name) for number, name in described.id2label.items()}
    if len(names) > MAX_CLASSES:
        raise CapwrightError(
            f"model {model.name!r} has {len(names)} classes: at most {MAX_CLASSES} fit in a label "
            "picture, so give one with fewer"
        )
    return tuple(names[number] for number in sorted(names))


def _depth_kind(model: HubModel, described: Any, wanted: str) -> str:
    if wanted != "auto":
        return wanted
    told = getattr(described, "depth_estimation_type", None)  # Depth Anything
    if told in (METRIC, RELATIVE):
        return str(told)
    if described.model_type in METRIC_KINDS:
        return METRIC
    if described.model_type in RELATIVE_KINDS:
        return RELATIVE
    raise CapwrightError(
        f"model {model.name!r} is a {described.model_type}, of which it is not known whether its "
        "depth is in metres: say --set depth_kind=metric, or relative if it is inverse depth "
        "without a scale"
    )


def _not_loaded(model: HubModel, error: Exception) -> CapwrightError:
    reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
    if "trust_remote_code" in str(error):
        way_out = "set trust_remote_code=true if you have read the code that comes with it"
    else:
        way_out = (
            f"give the hub id of a model for {model.task}, or a folder with config.json, "
            "safetensors and preprocessor_config.json"
        )
    return CapwrightError(
        f"model {model.name!r} could not be loaded ({type(error).__name__}: {reason}): {way_out}"
    )
