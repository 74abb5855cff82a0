"""Training-free segmentation of a labelled set, by every method and under two protocols.

`sclip/v1` takes words and constants that were chosen for the set (class_words.py); `plain/v1` takes
the classes' own names and one setting for all sets (docs/protocols/training-free-v1.md). Names
alone move the numbers more than most methods do, so both are always reported.

Reads a checkpoint and a data set (`capwright data list`). Writes OUT (results, one a protocol and
method). Run: `capwright evaluate training-free CHECKPOINT --dataset NAME --data FOLDER --out OUT`.

Shapes: B pictures of one size, Q names, E joint space, C classes, H and W as stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capwright import datasets
from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.datasets.labelled import load_dense
from capwright.datasets.sets import SegmentationItem, SegmentationSet
from capwright.dense.training_free import METHODS, find_method
from capwright.dense.training_free.segmenter import (
    Inference,
    class_scores,
    inference_for,
    labels,
    name_logits,
    resized,
)
from capwright.dense.vit import open_up
from capwright.dense.words import TEMPLATES, Vocabulary, text_vectors
from capwright.evaluate.class_words import engineered_settings, engineered_words, plain_words
from capwright.evaluate.classification import class_prompts
from capwright.evaluate.dense_metrics import class_ious, confusion_matrix, segmentation_metrics
from capwright.evaluate.encoder import Encoder, load_encoder
from capwright.evaluate.results import Protocol, Result, code_revision, write_results
from capwright.models import towers

PROTOCOLS = ("sclip", "plain")
BATCH = 16  # pictures of one size
SMALL = 8  # pixels of a scene of which only the names are read


@dataclass(frozen=True, kw_only=True)
class TrainingFreeConfig:
    """Which encoder, on which set, by which methods."""

    checkpoint: str | Path | None  # None is `scratch`: the towers `model` with fresh weights
    data: Path  # folder of the set
    out: Path  # results file
    dataset: str = "scenes"
    split: str | None = None  # None: the usual one
    methods: tuple[str, ...] = METHODS
    samples: int | None = None  # first so many pictures; None: all
    model: str | Mapping[str, Any] = "nano"  # towers without a checkpoint
    seed: int = 0  # of the fresh weights

    def __post_init__(self) -> None:
        if not self.methods:
            raise CapwrightError(f"no methods: choose from {', '.join(METHODS)}")
        for method in self.methods:
            find_method(method)


@dataclass(frozen=True, kw_only=True)
class TrainingFreeSummary:
    """mIoU by protocol and method; the results file has the rest."""

    miou: Mapping[str, Mapping[str, float | None]]
    pictures: int
    out: Path


def run(config: TrainingFreeConfig) -> TrainingFreeSummary:
    """Segment every picture and write the results."""
    pictures = datasets.load(config.dataset, config.data, config.split)
    if not isinstance(pictures, SegmentationSet):
        raise CapwrightError(
            f"{config.dataset} has no class at every pixel: choose a set for segmentation, such as "
            "ade20k or pascal-voc21"
        )
    encoder = load_encoder(config.checkpoint, model=config.model, seed=config.seed)
    count = min(len(pictures), config.samples or len(pictures))
    results: list[Result] = []
    for protocol in PROTOCOLS:
        vocabulary, inference = plan(config, pictures, protocol, encoder.image_size)
        found = confusions(encoder, pictures, count, vocabulary, config.methods, inference)
        for method, confusion_CC in found.items():
            options = {"method": method, "pictures": count, "inference": inference}
            results.append(
                _result(config, encoder, protocol, options, _metrics(pictures, confusion_CC))
            )
    write_results(config.out, results)
    miou: dict[str, dict[str, float | None]] = {f"{protocol}/v1": {} for protocol in PROTOCOLS}
    for row in results:
        miou[f"{row.protocol.name}/v1"][row.options["method"]] = row.metrics["miou"]
    return TrainingFreeSummary(miou=miou, pictures=count, out=config.out)


def plan(
    config: TrainingFreeConfig, pictures: SegmentationSet, protocol: str, image_size: int
) -> tuple[Vocabulary, Inference]:
    """The words and the settings of a protocol."""
    inference = inference_for(image_size)
    if protocol == "plain":
        return plain_words(pictures), inference
    names = None
    if pictures.name == "scenes":
        names = class_prompts(load_dense(config.data, SMALL), "objects")
    changes = engineered_settings(pictures.name, inference.window)
    return engineered_words(pictures, names), replace(inference, **changes)


@torch.no_grad()
def confusions(
    encoder: Encoder,
    pictures: SegmentationSet,
    count: int,
    vocabulary: Vocabulary,
    methods: Sequence[str],
    inference: Inference,
) -> dict[str, NDArray[np.int64]]:
    """Confusion matrix [C, C] by method over the first `count` pictures."""
    vit, side = open_up(encoder.model.eval()), encoder.image_size
    patch = side // towers.grid(encoder.model, side)[0]
    texts_QE = text_vectors(encoder.text_embeddings, vocabulary)
    classes = len(pictures.classes)
    total = {method: np.zeros((classes, classes), np.int64) for method in methods}
    with Progress("training-free", count, "pictures") as progress:
        for items in _batches(pictures, count):
            pixels_BHW3 = np.stack([np.asarray(item.image) for item in items])
            true_BHW = np.stack([item.seg_HW for item in items])
            images = resized(encoder.normalised(pixels_BHW3), inference.short_side, patch)
            size = (true_BHW.shape[1], true_BHW.shape[2])
            logits = name_logits(
                vit, images, texts_QE, methods, inference,
                size=size, background=vocabulary.background,
            )  # fmt: skip
            for method, logits_BQHW in logits.items():
                scores = class_scores(logits_BQHW, vocabulary, inference)
                found = labels(scores, inference).numpy()
                total[method] += confusion_matrix(found, true_BHW, classes)
            progress.advance(len(items))
    return total


def _batches(pictures: SegmentationSet, count: int) -> Iterator[list[SegmentationItem]]:
    """Neighbours of one size together."""
    batch: list[SegmentationItem] = []
    for number in range(count):
        item = pictures[number]
        if batch and (len(batch) == BATCH or item.image.size != batch[0].image.size):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _metrics(pictures: SegmentationSet, confusion_CC: NDArray[np.int64]) -> dict[str, float | None]:
    ious = zip(pictures.classes, class_ious(confusion_CC), strict=True)
    return segmentation_metrics(confusion_CC) | {f"iou/{name}": iou for name, iou in ious}


def _result(
    config: TrainingFreeConfig,
    encoder: Encoder,
    protocol: str,
    options: Mapping[str, Any],
    metrics: Mapping[str, float | None],
) -> Result:
    return Result(
        dataset=f"{config.dataset}-{config.split}" if config.split else config.dataset,
        model=encoder.name,
        pretrained=encoder.pretrained,
        task="training_free_segmentation",
        metrics=metrics,
        protocol=Protocol(name=protocol, version="v1"),
        seed=config.seed,
        samples_seen=encoder.samples_seen,
        code_revision=code_revision(),
        options={"templates": len(TEMPLATES), "data": str(config.data), **options},
    )
