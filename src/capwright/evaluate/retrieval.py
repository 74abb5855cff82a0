"""Image-text retrieval: is the right caption the nearest, and the right picture?

Protocol retrieval/v1. The texts are the distinct captions of the scenes; a text is right for every
picture that carries it word for word. `text_retrieval_recall@k`: share of pictures with a right
text among the k nearest. `image_retrieval_recall@k`: share of (picture, caption) pairs whose text
has a right picture among the k nearest. A wrong item as near as the best right one counts as
nearer, so an encoder that maps everything to one point scores 0. Metric names as CLIP_benchmark's.

Reads a checkpoint and scenes with their oracle captions, or any caption sidecar. Writes OUT. Run:
`capwright evaluate retrieval CHECKPOINT --data SCENES --out OUT`.

Shapes: N pictures, T distinct texts, E embedding, Q queries of a chunk, G gallery.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import load_pixels
from capwright.corpus.sidecars import captions_of
from capwright.datasets.labelled import oracle_captions, scene_index
from capwright.evaluate.encoder import load_encoder
from capwright.evaluate.outcomes import Outcome, Outcomes, hits
from capwright.evaluate.results import Protocol, Result, code_revision, write_results

PROTOCOL = Protocol(name="retrieval", version="v1")
RANKS = (1, 5, 10)
CHUNK = 1024  # queries compared with the gallery at a time


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Which encoder, on which pictures and captions."""

    checkpoint: str | Path | None  # None is `scratch`: the towers `model` with fresh weights
    data: Path  # work folder or folder of scenes
    out: Path  # results file
    captions: Path | None = None  # folder of caption sidecars; None: the scenes' oracle captions
    split: str = "seen"  # names the dataset in the results
    samples: int | None = None  # first so many pictures; None: all
    model: str | Mapping[str, Any] = "nano"  # towers without a checkpoint
    seed: int = 0  # of the fresh weights


@dataclass(frozen=True, kw_only=True)
class RetrievalSummary:
    """The metrics and how many pictures and distinct texts they are over."""

    metrics: Mapping[str, float]
    pictures: int
    texts: int
    out: Path


def run(config: RetrievalConfig) -> RetrievalSummary:
    """Measure both directions and write the results."""
    result, _ = measure(config)
    write_results(config.out, [result])
    metrics = {name: value for name, value in result.metrics.items() if value is not None}
    counts = {name: result.options[name] for name in ("pictures", "texts")}
    return RetrievalSummary(metrics=metrics, out=config.out, **counts)


def measure(config: RetrievalConfig) -> tuple[Result, Outcomes]:
    """Measure both directions; nothing is written."""
    encoder = load_encoder(config.checkpoint, model=config.model, seed=config.seed)
    index = scene_index(config.data)
    if config.samples is not None:
        index = index.slice(0, config.samples)
    captions = (
        oracle_captions(index) if config.captions is None else captions_of(index, config.captions)
    )
    bare = sum(not texts for texts in captions)
    if bare or not captions:
        raise CapwrightError(
            f"{bare} of {len(captions)} pictures in {config.data} have no caption: retrieval needs "
            "one for each, so use scenes with their oracle/ folder or another --captions"
        )
    texts, right = distinct(captions)
    images_NE = encoder.image_embeddings(load_pixels(index, size=encoder.image_size))
    to_text_N, to_image_T, weight_T = nearer_items(images_NE, encoder.text_embeddings(texts), right)
    result = Result(
        dataset=f"scenes-{config.split}",
        model=encoder.name,
        pretrained=encoder.pretrained,
        task="zeroshot_retrieval",
        metrics=recalls_at_ranks(to_text_N, to_image_T, weight_T),
        protocol=PROTOCOL,
        seed=config.seed,
        samples_seen=encoder.samples_seen,
        code_revision=code_revision(),
        options={
            "split": config.split,
            "captions": "oracle" if config.captions is None else config.captions.name,
            "pictures": len(captions),
            "texts": len(texts),
        },
    )
    return result, retrieval_outcomes(index["key"].to_pylist(), to_text_N, to_image_T, right)


def distinct(captions: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """Distinct texts in order of appearance, and per picture the numbers of its texts."""
    numbers: dict[str, int] = {}
    right = [[numbers.setdefault(text, len(numbers)) for text in texts] for texts in captions]
    return list(numbers), right


def recalls(
    images_NE: Tensor, texts_TE: Tensor, right: Sequence[Sequence[int]], *, chunk: int = CHUNK
) -> dict[str, float]:
    """Recall at RANKS in both directions; `right[n]` are the texts of picture n.

    Similarities are made `chunk` queries at a time, so N x T never lies in memory.
    """
    return recalls_at_ranks(*nearer_items(images_NE, texts_TE, right, chunk=chunk))


def nearer_items(
    images_NE: Tensor, texts_TE: Tensor, right: Sequence[Sequence[int]], *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor, Tensor]:
    """How many wrong items are at least as near as the nearest right one, of every picture [N] and
    every text [T], and how many pictures carry each text [T].
    """
    pairs = torch.tensor([(n, t) for n, texts in enumerate(right) for t in texts])
    weight_T = torch.bincount(pairs[:, 1], minlength=len(texts_TE)).double()
    to_text_N = _ranks(images_NE, texts_TE, pairs, chunk)
    to_image_T = _ranks(texts_TE, images_NE, pairs.flip(1), chunk)
    return to_text_N, to_image_T, weight_T


def recalls_at_ranks(to_text_N: Tensor, to_image_T: Tensor, weight_T: Tensor) -> dict[str, float]:
    """Recall at RANKS in both directions from `nearer_items`."""
    metrics = {}
    for k in RANKS:
        hits_T = (to_image_T < k).double()
        metrics[f"image_retrieval_recall@{k}"] = float((hits_T * weight_T).sum() / weight_T.sum())
        metrics[f"text_retrieval_recall@{k}"] = float((to_text_N < k).double().mean())
    return metrics


def retrieval_outcomes(
    keys: Sequence[str], to_text_N: Tensor, to_image_T: Tensor, right: Sequence[Sequence[int]]
) -> Outcomes:
    """What each picture contributed to `recalls_at_ranks`."""
    captions_N = np.array([len(own) for own in right], np.uint16)
    metrics = {}
    for k in RANKS:
        found_T = (to_image_T < k).numpy()
        found_N = np.array([found_T[list(own)].sum() for own in right], np.uint16)
        metrics[f"image_retrieval_recall@{k}"] = Outcome(part=found_N, whole=captions_N)
        metrics[f"text_retrieval_recall@{k}"] = hits((to_text_N < k).numpy())
    return Outcomes(keys=tuple(keys), metrics=metrics)


def _ranks(queries: Tensor, gallery_GE: Tensor, pairs: Tensor, chunk: int) -> Tensor:
    """For every query the number of wrong items at least as near as its nearest right one."""
    found = []
    for first, right_QG in _chunks(len(queries), len(gallery_GE), pairs, chunk):
        near_QG = queries[first : first + len(right_QG)] @ gallery_GE.T
        best_Q1 = near_QG.masked_fill(~right_QG, -torch.inf).amax(dim=1, keepdim=True)
        found.append(((near_QG >= best_Q1) & ~right_QG).sum(dim=1))
    return torch.cat(found)


def _chunks(queries: int, gallery: int, pairs: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, queries, chunk):
        count = min(chunk, queries - first)
        inside = pairs[(pairs[:, 0] >= first) & (pairs[:, 0] < first + count)]
        right_QG = torch.zeros(count, gallery, dtype=torch.bool)
        right_QG[inside[:, 0] - first, inside[:, 1]] = True
        yield first, right_QG
