"""Classification by transfer: linear probe, weighted nearest neighbours, fine-tuning.

Protocol linear-probe/v1 (docs/protocols/linear-probe-v1.md) for all three. The linear probe and the
neighbours read one vector a picture from a frozen encoder (vectors.py), computed once for all
fractions and seeds; fine-tuning (finetune_classifier.py) learns everything. Zero-shot, which learns
nothing, is zero_shot.py. Metrics as CLIP_benchmark's: acc1, acc5 (None below five classes),
mean_per_class_recall.

Shapes: N pictures, B batch, D features, K classes, S side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.core.reading import in_batches, in_order
from capwright.datasets.sets import ClassificationSet
from capwright.evaluate.classification import hit_outcomes, metrics_of_hits, top_hits
from capwright.evaluate.outcomes import Outcomes
from capwright.evaluate.results import Protocol
from capwright.evaluate.transfer import linear_probe, nearest
from capwright.evaluate.transfer.finetune_classifier import Classifier, FineTuning
from capwright.evaluate.transfer.vectors import (
    VectorPlan,
    VectorStore,
    check_label,
    prepared,
)
from capwright.pretrain.precision import arithmetic

PROTOCOL = Protocol(name="linear-probe", version="v1")
METHODS = ("linear", "knn", "finetune")


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """What learns, and how pictures are seen."""

    method: Literal["linear", "knn", "finetune"] = "linear"
    vectors: VectorPlan = field(default_factory=VectorPlan)
    l2: float | None = None  # of the linear probe; None: chosen on pictures held out
    held_out: float = 0.1  # share of the training pictures that it is chosen on
    standardise: bool = True  # features to mean 0 and deviation 1 before the linear probe
    iterations: int = 1000  # of L-BFGS
    neighbours: int = nearest.NEIGHBOURS
    temperature: float = nearest.TEMPERATURE
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    batch: int = 64  # pictures of one pass without a gradient

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise CapwrightError(f"method {self.method!r}: allowed are {', '.join(METHODS)}")
        if not 0 < self.held_out < 1 or self.neighbours < 1 or self.temperature <= 0:
            raise CapwrightError(
                f"held_out={self.held_out}, neighbours={self.neighbours}, temperature="
                f"{self.temperature}: held_out is between 0 and 1, neighbours at least 1, the "
                "temperature above 0"
            )


Measured = tuple[dict[str, float | None], Outcomes]


def frozen_scores(
    train: VectorStore,
    numbers: Sequence[int],
    test: VectorStore,
    test_numbers: Sequence[int],
    settings: ClassificationSettings,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """(scores [N, K], labels [N]) of the test pictures from vectors of a frozen encoder.

    Raises CapwrightError where a class has no picture in a training set that is used whole.
    """
    classes = train.pictures.classes
    vectors_ND, labels_N = train(numbers, "train")
    if len(numbers) == len(train.pictures):
        require_every_class(labels_N.tolist(), train.pictures)
    queries_QD, truth_Q = test(test_numbers, "test")
    device = next(train.backbone.parameters()).device
    vectors_ND, labels_N, queries_QD = (
        each.to(device) for each in (vectors_ND, labels_N, queries_QD)
    )
    if settings.method == "knn":
        votes_QK = nearest.votes(
            vectors_ND, labels_N, queries_QD, len(classes),
            neighbours=settings.neighbours, temperature=settings.temperature,
        )  # fmt: skip
        return votes_QK.log().cpu(), truth_Q
    probe = linear_probe.learn(
        vectors_ND, labels_N, len(classes),
        seed=seed, l2=settings.l2, held_out=settings.held_out,
        standardise=settings.standardise, iterations=settings.iterations,
    )  # fmt: skip
    return probe.logits(queries_QD).cpu(), truth_Q


@torch.no_grad()
def classifier_scores(
    model: Classifier,
    pictures: ClassificationSet,
    numbers: Sequence[int],
    settings: ClassificationSettings,
) -> tuple[Tensor, Tensor]:
    """(logits [N, K], labels [N]) of a fine-tuned classifier."""
    model.eval()
    plan, device = settings.vectors, next(model.parameters()).device

    def ready(number: int) -> tuple[Tensor, int]:
        item = pictures[number]
        check_label(item, pictures)
        return prepared(item.image, plan.side(model.backbone), plan.crop_share), item.label

    logits: list[Tensor] = []
    labels: list[int] = []
    with Progress("test, classification", len(numbers), "pictures") as progress:
        read = in_order(ready, numbers, ahead=2 * settings.batch)
        for batch in in_batches(read, settings.batch):
            pixels, found = zip(*batch, strict=True)
            images_B3SS = model.backbone.normalised(torch.stack(pixels).to(device))
            with arithmetic(plan.precision, device):
                logits.append(model(images_B3SS).float().cpu())
            labels += found
            progress.advance(len(batch))
    return torch.cat(logits), torch.tensor(labels)


def measure(keys: Sequence[str], scores_NK: Tensor, labels_N: Tensor) -> Measured:
    """Metrics and each picture's hits; a class with the score -inf is never a hit."""
    hits_N5 = top_hits(scores_NK, labels_N)
    hits_N5 &= scores_NK.topk(hits_N5.shape[1], dim=1).values.isfinite()
    metrics: dict[str, float | None] = dict(metrics_of_hits(hits_N5, labels_N))
    outcomes = hit_outcomes(keys, hits_N5, labels_N)
    if scores_NK.shape[1] < 5:
        metrics["acc5"] = None
        kept = {name: one for name, one in outcomes.metrics.items() if name != "acc5"}
        outcomes = Outcomes(keys=outcomes.keys, metrics=kept)
    return metrics, outcomes


def require_every_class(labels: Iterable[int], pictures: ClassificationSet) -> None:
    """Raise CapwrightError where a class has no picture."""
    present = set(labels)
    missing = [name for number, name in enumerate(pictures.classes) if number not in present]
    if missing:
        raise CapwrightError(
            f"{len(missing)} classes of {pictures.name} have no training pictures, first "
            f"{missing[0]!r}: add some, or remove the class from training and test folders"
        )
