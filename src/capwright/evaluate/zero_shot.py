"""Zero-shot classification of any labelled pictures, as CLIP_benchmark measures it.

Protocol clip-benchmark-classification/v1 (docs/protocols/). A class's vector is the mean of the
unit vectors of its name in every template, made a unit vector again; a picture's class is the
nearest (CLIP, arXiv 2103.00020, section 3.1.4). `acc1`, `acc5` (None below five classes) and
`mean_per_class_recall`, the mean over the classes that occur. Scores are made a chunk at a time, so
pictures x classes never lies in memory. The scenes' own protocol is classification.py.

Reads a ClassificationSet. Writes nothing; suite.py is the stage around it.

Shapes: N pictures, Q of a chunk, K classes, E embedding.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import open_clip
import torch
from PIL import Image
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import ClassificationSet
from capwright.evaluate.classification import (
    class_vectors,
    hit_outcomes,
    metrics_of_hits,
    top_hits,
)
from capwright.evaluate.embeddings import Embeddings
from capwright.evaluate.outcomes import Outcomes
from capwright.evaluate.results import Protocol

PROTOCOL = Protocol(name="clip-benchmark-classification", version="v1")
CHUNK = 1024  # pictures compared with the classes at a time


def classify(
    embeddings: Embeddings,
    pictures: ClassificationSet,
    *,
    templates: Sequence[str] = (),
    samples: int | None = None,
) -> tuple[dict[str, float | None], Outcomes]:
    """Metrics over the first `samples` pictures, and which of them were hit.

    `templates` have one `{c}` or `{}` each; () takes those of the set, or else open_clip's 80 of
    ImageNet. Raises CapwrightError for a template without a place or a label without a name.
    """
    weights_KE = class_vectors(
        embeddings, [[name] for name in pictures.classes], templates_of(pictures, templates)
    )
    labels: list[int] = []
    keys: list[str] = []

    def images() -> Iterator[Image.Image]:
        for i in islice(range(len(pictures)), samples):
            item = pictures[i]
            if not 0 <= item.label < len(pictures.classes):
                raise CapwrightError(
                    f"picture {item.key!r} of {pictures.name} has the label {item.label}, but "
                    f"there are {len(pictures.classes)} class names: correct the list of names"
                )
            labels.append(item.label)
            keys.append(item.key)
            yield item.image

    total = len(pictures) if samples is None else min(samples, len(pictures))
    images_NE = embeddings.image_embeddings(images(), total, f"zero-shot, {pictures.name}")
    labels_N = torch.tensor(labels)
    hits_N5 = _chunked_hits(images_NE, weights_KE, labels_N)
    metrics: dict[str, float | None] = dict(metrics_of_hits(hits_N5, labels_N))
    outcomes = hit_outcomes(keys, hits_N5, labels_N)
    if len(pictures.classes) < 5:
        metrics["acc5"] = None
        kept = {name: one for name, one in outcomes.metrics.items() if name != "acc5"}
        outcomes = Outcomes(keys=outcomes.keys, metrics=kept)
    return metrics, outcomes


def _chunked_hits(images_NE: Tensor, weights_KE: Tensor, labels_N: Tensor) -> Tensor:
    pairs = zip(images_NE.split(CHUNK), labels_N.split(CHUNK), strict=True)
    return torch.cat(
        [top_hits(images_QE @ weights_KE.T, labels_Q) for images_QE, labels_Q in pairs]
    )


def templates_of(pictures: ClassificationSet, chosen: Sequence[str] = ()) -> list[str]:
    """`chosen`, or those of the set, or open_clip's 80 of ImageNet; with "{}" for the name."""
    templates = list(chosen or getattr(pictures, "templates", None) or ())
    if not templates:
        templates = [fill("{c}") for fill in open_clip.OPENAI_IMAGENET_TEMPLATES]
    for template in templates:
        if template.count("{c}") + template.count("{}") != 1:
            raise CapwrightError(
                f"template {template!r} needs exactly one {{c}} or {{}} for the name, "
                "such as 'a photo of a {c}'"
            )
    return [template.replace("{c}", "{}") for template in templates]
