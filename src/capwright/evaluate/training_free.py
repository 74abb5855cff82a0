"""Training-free segmentation of a labelled set, by every method and under two protocols.

`sclip/v1` takes words and constants that were chosen for the set (class_words.py); `plain/v1` takes
the classes' own names and one setting for all sets (docs/protocols/training-free-v1.md). Names
alone move the numbers more than most methods do, so both are always reported.

A set with a background can be measured with its things alone, as Pascal VOC is reported with 21
and with 20 classes: the background is ignored and has no words. The residual and the feed-forward
part of the last block can be switched, and scores refined by colour (PAMR, at the labels' size);
results then have `mode` in their options, such as "no residual, pamr", and are no protocol's usual
ones.

Reads a checkpoint and a data set (`capwright data list`). Writes OUT (results, one a protocol and
method) and beside it .npz with what each picture contributed (outcomes.py). Run:
`capwright evaluate training-free CHECKPOINT --dataset NAME --data FOLDER --out OUT`.

Shapes: N pictures, B of one size, Q names, E joint space, C classes, H and W as stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from capwright import datasets
from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.core.reading import in_batches
from capwright.datasets.labelled import load_dense
from capwright.datasets.sets import IGNORE, SegmentationItem, SegmentationSet
from capwright.dense.training_free import METHODS, find_method, require_switches
from capwright.dense.training_free.segmenter import (
    Inference,
    class_scores,
    inference_for,
    labels,
    name_logits,
    resized,
)
from capwright.dense.vit import open_up
from capwright.dense.words import TEMPLATES, Vocabulary, best_name, text_vectors
from capwright.evaluate.class_words import engineered_settings, engineered_words, plain_words
from capwright.evaluate.classification import class_prompts
from capwright.evaluate.dense_metrics import class_ious, confusion_matrix, segmentation_metrics
from capwright.evaluate.embeddings import Embeddings
from capwright.evaluate.encoder import Encoder, load_encoder
from capwright.evaluate.outcomes import Outcomes, counted_outcomes, write_outcomes
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
    label: str = ""  # of the set in the results; "": its name and split
    things: bool = False  # leave the background out
    methods: tuple[str, ...] = METHODS
    residual: bool | None = None  # of the last block; None: as each method has it
    ffn: bool | None = None  # its feed-forward part, likewise
    pamr: bool = False  # refinement by colour
    samples: int | None = None  # first so many pictures; None: all
    model: str | Mapping[str, Any] = "nano"  # towers without a checkpoint
    seed: int = 0  # of the fresh weights

    def __post_init__(self) -> None:
        if not self.methods:
            raise CapwrightError(f"no methods: choose from {', '.join(METHODS)}")
        for method in self.methods:
            find_method(method)
        switches = {"residual": self.residual, "ffn": self.ffn}
        require_switches(self.methods, [name for name in switches if switches[name] is not None])


@dataclass(frozen=True, kw_only=True)
class TrainingFreeSummary:
    """mIoU by protocol and method; the results file has the rest."""

    miou: Mapping[str, Mapping[str, float | None]]
    pictures: int
    out: Path


@dataclass
class Counts:
    """Pixels that one method got right and wrong, as pictures come."""

    classes: int
    confusion_CC: NDArray[np.int64] = field(init=False)  # rows truth, columns prediction
    rows: list[NDArray[np.uint32]] = field(default_factory=list)  # [3, C]: hits, truth, prediction

    def __post_init__(self) -> None:
        self.confusion_CC = np.zeros((self.classes, self.classes), np.int64)

    def add(self, pred_HW: NDArray[np.integer], true_HW: NDArray[np.integer]) -> None:
        """Count a picture."""
        found_CC = confusion_matrix(pred_HW, true_HW, self.classes)
        self.confusion_CC += found_CC
        parts = (np.diag(found_CC), found_CC.sum(axis=1), found_CC.sum(axis=0))
        self.rows.append(np.stack(parts).astype(np.uint32))

    def outcomes(self, keys: Sequence[str]) -> Outcomes:
        """What each picture contributed to the metrics."""
        hits_NC, true_NC, pred_NC = np.stack(self.rows, axis=1).astype(np.int64)
        return counted_outcomes(keys, hits_NC, true_NC, pred_NC)


def run(config: TrainingFreeConfig) -> TrainingFreeSummary:
    """Segment every picture and write the results."""
    results, outcomes = measure(config)
    write_outcomes(config.out.with_suffix(".npz"), outcomes)
    write_results(config.out, results)
    miou: dict[str, dict[str, float | None]] = {f"{protocol}/v1": {} for protocol in PROTOCOLS}
    for row in results:
        miou[f"{row.protocol.name}/v1"][row.options["method"]] = row.metrics["miou"]
    return TrainingFreeSummary(miou=miou, pictures=results[0].options["pictures"], out=config.out)


def measure(
    config: TrainingFreeConfig, embeddings: Embeddings | None = None
) -> tuple[list[Result], list[Outcomes]]:
    """Segment every picture; nothing is written. `embeddings` is of the model, where it is loaded.

    Raises CapwrightError for a set without classes at every pixel, and for a tower that cannot be
    opened up.
    """
    pictures = datasets.load(config.dataset, config.data, config.split)
    if not isinstance(pictures, SegmentationSet):
        raise CapwrightError(
            f"{config.dataset} has no class at every pixel: choose a set for segmentation, such as "
            "ade20k or pascal-voc21"
        )
    if config.things and not pictures.has_background:
        raise CapwrightError(f"{config.dataset} has no background to leave out: things=false")
    if embeddings is None:
        encoder = load_encoder(config.checkpoint, model=config.model, seed=config.seed)
        embeddings = Embeddings(encoder)
    encoder = embeddings.encoder
    number = min(len(pictures), config.samples or len(pictures))
    results: list[Result] = []
    outcomes: list[Outcomes] = []
    for protocol in PROTOCOLS:
        vocabulary, usual = plan(config, pictures, protocol, encoder.image_size)
        inference = replace(usual, residual=config.residual, ffn=config.ffn, pamr=config.pamr)
        if config.things:
            vocabulary = Vocabulary(classes=vocabulary.classes[1:])
            inference = replace(inference, area_threshold=0.0, probability_threshold=0.0)
        texts_QE = text_vectors(embeddings.text_embeddings, vocabulary)
        scored = without_background(pictures) if config.things else pictures
        found = count(encoder, scored, number, vocabulary, texts_QE, config.methods, inference)
        for method, counts in found.items():
            options = {"method": method, "pictures": number, "inference": inference}
            metrics = _metrics(scored, counts.confusion_CC)
            results.append(_result(config, encoder, protocol, options | _mode(config), metrics))
            outcomes.append(counts.outcomes(pictures.keys[:number]))
    return results, outcomes


def without_background(pictures: SegmentationSet) -> SegmentationSet:
    """The set with class 0 ignored and the others a number lower."""
    read = _Things(pictures)
    return replace(pictures, read=read, classes=pictures.classes[1:], has_background=False)


@dataclass(frozen=True)
class _Things:
    pictures: SegmentationSet

    def __call__(self, index: int) -> SegmentationItem:
        item = self.pictures[index]
        seg_HW = np.where(item.seg_HW == IGNORE, 0, item.seg_HW) - np.uint8(1)  # 0 becomes 255
        return replace(item, seg_HW=seg_HW)


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
def count(
    encoder: Encoder,
    pictures: SegmentationSet,
    number: int,
    vocabulary: Vocabulary,
    texts_QE: Tensor,
    methods: Sequence[str],
    inference: Inference,
) -> dict[str, Counts]:
    """Right and wrong pixels by method over the first `number` pictures."""
    vit, side = open_up(encoder.model.eval()), encoder.image_size
    device = next(encoder.model.parameters()).device
    patch = side // towers.grid(encoder.model, side)[0]
    found = {method: Counts(len(pictures.classes)) for method in methods}
    with Progress("training-free", number, "pictures") as progress:
        read = map(pictures.__getitem__, range(number))
        for items in in_batches(read, BATCH, lambda item: item.image.size):
            pixels_BHW3 = np.stack([np.asarray(item.image) for item in items])
            images = resized(encoder.normalised(pixels_BHW3), inference.short_side, patch)
            logits = name_logits(
                vit, images.to(device), texts_QE.to(device), methods, inference,
                background=vocabulary.background,
            )  # fmt: skip
            for method, logits_BQhw in logits.items():
                for logits_Qhw, item in zip(logits_BQhw, items, strict=True):
                    pred_HW = _labels(logits_Qhw, item, vocabulary, inference)
                    found[method].add(pred_HW, item.seg_HW)
            progress.advance(len(items))
    return found


def _labels(
    logits_Qhw: Tensor, item: SegmentationItem, vocabulary: Vocabulary, inference: Inference
) -> NDArray[np.int64]:
    """Classes [H, W] of one picture: with many names the logits of several are too large."""
    logits_1QHW = F.interpolate(
        logits_Qhw[None], item.seg_HW.shape, mode="bilinear", align_corners=False
    )
    if inference.pamr or inference.area_threshold or inference.probability_threshold:
        pixels_1HW3 = torch.from_numpy(np.array(item.image))[None].to(logits_Qhw.device)
        images_13HW = pixels_1HW3.permute(0, 3, 1, 2).float() / 255
        scores_1CHW = class_scores(logits_1QHW, vocabulary, inference)
        found_1HW = labels(scores_1CHW, inference, images_13HW)
    else:  # the softmax over all names changes no order
        found_1HW = best_name(logits_1QHW, vocabulary).argmax(dim=1)
    found: NDArray[np.int64] = found_1HW[0].cpu().numpy()
    return found


def _mode(config: TrainingFreeConfig) -> dict[str, str]:
    """What is not as usual, by the name under which tables tell results apart."""
    parts = {"residual": config.residual, "ffn": config.ffn, "pamr": config.pamr or None}
    named = [name if on else f"no {name}" for name, on in parts.items() if on is not None]
    return {"mode": ", ".join(named)} if named else {}


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
    split = f"-{config.split}" if config.split else ""
    things = "-things" if config.things else ""
    return Result(
        dataset=(config.label or f"{config.dataset}{split}") + things,
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
