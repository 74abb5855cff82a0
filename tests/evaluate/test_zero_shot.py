"""Zero-shot classification and retrieval are clip_benchmark's on the same model and pictures."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from capwright.core.errors import CapwrightError
from capwright.evaluate import zero_shot
from capwright.evaluate.caption_retrieval import retrieve
from capwright.evaluate.embeddings import Embeddings
from capwright.evaluate.outcomes import values
from capwright.evaluate.zero_shot import classify


class Batches:
    """A data loader of clip_benchmark: batches of seven, in order."""

    def __init__(self, dataset: Any, samples: list[tuple[Any, Any]]) -> None:
        self.dataset, self.samples = dataset, samples

    def __iter__(self) -> Any:
        for start in range(0, len(self.samples), 7):
            images, labels = zip(*self.samples[start : start + 7], strict=True)
            numbers = isinstance(labels[0], int)
            yield torch.stack(images), torch.tensor(labels) if numbers else labels


def theirs(embeddings: Embeddings, dataset: Any, label: str) -> Batches:
    preprocess = embeddings.preprocess
    return Batches(dataset, [(preprocess(i.image), getattr(i, label)) for i in dataset.items])


@pytest.fixture
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    def accuracy(output: Any, target: Any, topk: Any = (1,)) -> list[float]:
        hit = output.topk(max(topk)).indices == target[:, None]
        return [float(hit[:, :k].any(dim=1).float().mean()) for k in topk]

    with pytest.MonkeyPatch.context() as patch:
        # NumPy 2.4 and later refuse what its own does (LAION-AI/CLIP_benchmark, issue 147)
        patch.setattr(zeroshot_classification, "accuracy", accuracy)
        yield zeroshot_classification.evaluate, zeroshot_retrieval.evaluate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_classification_is_clip_benchmarks(encoder, classification_set, peer) -> None:
    embeddings = Embeddings(encoder, batch=16)
    metrics, outcomes = classify(embeddings, classification_set)
    expected = peer[0](
        encoder.model,
        theirs(embeddings, classification_set, "label"),
        encoder.tokenizer,
        list(classification_set.classes),
        list(classification_set.templates),
        "cpu",
        amp=False,
    )
    assert metrics == pytest.approx(expected, abs=1e-6)
    assert 0.2 < metrics["acc1"] < metrics["acc5"] <= 1
    assert metrics["acc1"] != metrics["mean_per_class_recall"]
    once = torch.ones(1, len(classification_set)).numpy()
    found = {name: values(outcome, once)[0] for name, outcome in outcomes.metrics.items()}
    assert found == pytest.approx(metrics)


@pytest.mark.slow
def test_retrieval_is_clip_benchmarks(encoder, caption_set, peer) -> None:
    embeddings = Embeddings(encoder, batch=16)
    metrics, outcomes = retrieve(embeddings, caption_set)
    loader = theirs(embeddings, caption_set, "captions")
    expected = peer[1](
        encoder.model, loader, encoder.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    assert metrics == pytest.approx(expected, abs=1e-6)
    assert 0 < metrics["text_retrieval_recall@5"] < metrics["text_retrieval_recall@10"] < 1
    once = torch.ones(1, len(caption_set)).numpy()
    found = {name: values(outcome, once)[0] for name, outcome in outcomes.metrics.items()}
    assert found == pytest.approx(metrics)


def test_pictures_and_texts_are_computed_once(encoder, classification_set, caption_set) -> None:
    embeddings = Embeddings(encoder, batch=8)
    first, _ = classify(embeddings, classification_set)
    assert embeddings.computed == 40
    retrieve(embeddings, caption_set)  # its pictures are the first 30
    again, _ = classify(embeddings, classification_set)
    assert embeddings.computed == 40
    assert again == first
    texts = ["b", "a", "b"]
    torch.testing.assert_close(
        embeddings.text_embeddings(texts), encoder.text_embeddings(texts), atol=1e-6, rtol=0
    )


def test_chunks_and_batches_change_nothing(
    encoder, classification_set, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = classify(Embeddings(encoder), classification_set)
    monkeypatch.setattr(zero_shot, "CHUNK", 7)
    parts, _ = classify(Embeddings(encoder, batch=3), classification_set)
    assert parts == whole


def test_below_five_classes_there_is_no_acc5(encoder, classification_set) -> None:
    few = replace(
        classification_set,
        classes=("a bus", "a dog"),
        items=tuple(replace(item, label=i % 2) for i, item in enumerate(classification_set.items)),
    )
    metrics, outcomes = classify(Embeddings(encoder), few, samples=6)
    assert metrics["acc5"] is None
    assert set(outcomes.metrics) == {"acc1", "mean_per_class_recall"}
    assert outcomes.keys == tuple(f"{i:04d}" for i in range(6))


def test_faults_of_a_set_are_named(encoder, classification_set, caption_set) -> None:
    embeddings = Embeddings(encoder)
    odd = replace(classification_set, templates=("a photo",))
    with pytest.raises(CapwrightError, match=r"template 'a photo' needs exactly one \{c\}"):
        classify(embeddings, odd)
    short = replace(classification_set, classes=("a bus",))
    with pytest.raises(CapwrightError, match=r"has the label \d, but there are 1 class names"):
        classify(embeddings, short)
    bare = replace(caption_set, items=(replace(caption_set.items[0], captions=()),))
    with pytest.raises(CapwrightError, match="picture '0000' of toy-captions has no caption"):
        retrieve(embeddings, bare)
