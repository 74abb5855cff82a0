"""Zero-shot classification: the class of a scene's largest object, from text alone.

Protocol zeroshot-classification/v1. A class's vector is the mean of the unit vectors of its names
in every template, made a unit vector again (CLIP, arXiv 2103.00020, section 3.1.4). Its names are
those of its cut-outs ("toucan", "heron"), or with `names="classes"` the class name alone ("birds").
The truth is the class with most pixels; pictures without an object are left out and counted.
Metrics as CLIP_benchmark's: acc1, acc5, mean_per_class_recall.

Reads a checkpoint and labelled scenes. Writes OUT. Run:
`capwright evaluate classification CHECKPOINT --data SCENES --out OUT`.

Shapes: N pictures, K classes with names, E embedding, S side.
"""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.datasets.labelled import IGNORE, LabelledScenes, load_dense
from capwright.evaluate.encoder import load_encoder
from capwright.evaluate.named_objects import normal_name
from capwright.evaluate.outcomes import Outcomes, hits
from capwright.evaluate.results import Protocol, Result, code_revision, write_results

PROTOCOL = Protocol(name="zeroshot-classification", version="v1")
TEMPLATES = ("{}", "a {}", "a picture of a {}", "a photo of a {}")


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Which encoder, on which scenes, with which words."""

    checkpoint: str | Path | None  # None is `scratch`: the towers `model` with fresh weights
    data: Path  # work folder or folder of scenes with labels
    out: Path  # results file
    names: Literal["objects", "classes"] = "objects"  # words that stand for a class
    templates: tuple[str, ...] = TEMPLATES
    split: str = "seen"  # names the dataset in the results
    samples: int | None = None  # first so many pictures; None: all
    model: str | Mapping[str, Any] = "nano"  # towers without a checkpoint
    seed: int = 0  # of the fresh weights

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count("{}") != 1:
                raise CapwrightError(
                    f"template {template!r} needs exactly one {{}} for the name, "
                    "such as 'a photo of a {}'"
                )
        if not self.templates:
            raise CapwrightError("no templates: pass at least one, such as 'a photo of a {}'")


@dataclass(frozen=True, kw_only=True)
class ClassificationSummary:
    """The metrics, over how many pictures and classes, and how many pictures show no object."""

    metrics: Mapping[str, float]
    pictures: int
    classes: int
    without_object: int
    out: Path


def run(config: ClassificationConfig) -> ClassificationSummary:
    """Classify every scene and write the results."""
    result, _ = measure(config)
    write_results(config.out, [result])
    counts = {name: result.options[name] for name in ("pictures", "classes", "without_object")}
    metrics = {name: value for name, value in result.metrics.items() if value is not None}
    return ClassificationSummary(metrics=metrics, out=config.out, **counts)


def measure(config: ClassificationConfig) -> tuple[Result, Outcomes]:
    """Classify every scene; nothing is written."""
    encoder = load_encoder(config.checkpoint, model=config.model, seed=config.seed)
    scenes = load_dense(config.data, encoder.image_size, limit=config.samples)
    names = class_prompts(scenes, config.names)
    labels_N = largest_class(scenes.seg_NSS, len(scenes.classes))
    kept = np.isin(labels_N, sorted(names))
    if not kept.any():
        raise CapwrightError(f"no scene in {config.data} shows an object: make scenes with objects")
    numbers = sorted(names)
    weights_KE = class_vectors(encoder, [names[number] for number in numbers], config.templates)
    logits_NK = encoder.image_embeddings(scenes.images_NSS3[kept]) @ weights_KE.T
    labels = torch.from_numpy(np.searchsorted(numbers, labels_N[kept]))
    hits_N5 = top_hits(logits_NK, labels)
    counts = {
        "pictures": int(kept.sum()),
        "classes": len(names),
        "without_object": int((~kept).sum()),
    }
    result = Result(
        dataset=f"scenes-{config.split}",
        model=encoder.name,
        pretrained=encoder.pretrained,
        task="zeroshot_classification",
        metrics=metrics_of_hits(hits_N5, labels),
        protocol=PROTOCOL,
        seed=config.seed,
        samples_seen=encoder.samples_seen,
        code_revision=code_revision(),
        options={"split": config.split, "names": config.names, "templates": config.templates}
        | counts,
    )
    keys = [key for key, used in zip(scenes.keys, kept, strict=True) if used]
    return result, hit_outcomes(keys, hits_N5, labels)


def class_prompts(
    scenes: LabelledScenes, names: Literal["objects", "classes"]
) -> dict[int, list[str]]:
    """Words by class number, for the classes that have an object in the scenes."""
    words: dict[int, set[str]] = {}
    for placed in (item for objects in scenes.objects for item in objects):
        if placed.class_name not in scenes.classes:
            raise CapwrightError(
                f"a box has the class {placed.class_name!r}, which classes.json does not name: "
                f"allowed are {', '.join(scenes.classes[1:])}"
            )
        word = placed.class_name if names == "classes" else normal_name(placed.caption)
        words.setdefault(scenes.classes.index(placed.class_name), set()).add(word)
    return {number: sorted(found - {""}) for number, found in words.items() if found - {""}}


class EmbedsTexts(typing.Protocol):
    """What gives unit vectors [T, E] of texts: an encoder, or its cache (embeddings.py)."""

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [T, E]."""


def class_vectors(
    encoder: EmbedsTexts, names: Sequence[Sequence[str]], templates: Sequence[str]
) -> Tensor:
    """Unit vectors [K, E], one a class, from all its names in all templates."""
    prompts = [[template.format(n) for n in words for template in templates] for words in names]
    vectors_PE = encoder.text_embeddings([text for texts in prompts for text in texts])
    parts = vectors_PE.split([len(texts) for texts in prompts])
    return F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1)


def largest_class(seg_NSS: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """The class with most pixels in every picture; 0 where there is background alone."""
    largest = np.zeros(len(seg_NSS), np.int64)
    for i, seg in enumerate(seg_NSS):
        areas = np.bincount(seg[seg != IGNORE], minlength=classes)[1:]
        largest[i] = areas.argmax() + 1 if areas.any() else 0
    return largest


def classification_metrics(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """`acc1`, `acc5` (or the number of classes, if there are fewer) and `mean_per_class_recall`."""
    return metrics_of_hits(top_hits(logits_NK, labels_N), labels_N)


def top_hits(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Whether the first, second, ... of the five best classes is right, bool [N, 5 or K]."""
    top_N5 = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices
    return top_N5 == labels_N[:, None]


def metrics_of_hits(hits_N5: Tensor, labels_N: Tensor) -> dict[str, float]:
    """The metrics of `classification_metrics` from `top_hits`."""
    first_N = hits_N5[:, 0].double()
    recalls = [first_N[labels_N == label].mean() for label in labels_N.unique()]
    return {
        "acc1": float(first_N.mean()),
        "acc5": float(hits_N5.any(dim=1).double().mean()),
        "mean_per_class_recall": float(torch.stack(recalls).mean()),
    }


def hit_outcomes(keys: Sequence[str], hits_N5: Tensor, labels_N: Tensor) -> Outcomes:
    """What each picture contributed to `metrics_of_hits`."""
    first_N = hits_N5[:, 0].numpy()
    metrics = {
        "acc1": hits(first_N),
        "acc5": hits(hits_N5.any(dim=1).numpy()),
        "mean_per_class_recall": hits(first_N, labels_N.numpy().astype(np.int32)),
    }
    return Outcomes(keys=tuple(keys), metrics=metrics)
