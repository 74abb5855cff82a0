"""Classification by transfer of coloured pictures: probe, neighbours, what is refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets import load
from capwright.datasets.sets import ClassificationSet, require_same_classes
from capwright.dense.backbone import Backbone, load_backbone
from capwright.evaluate.classification import classification_metrics
from capwright.evaluate.outcomes import values
from capwright.evaluate.transfer.classification import (
    ClassificationSettings,
    classifier_scores,
    frozen_scores,
    measure,
    require_every_class,
)
from capwright.evaluate.transfer.finetune_classifier import Classifier
from capwright.evaluate.transfer.vectors import VectorPlan, VectorStore

COLOURS = {"amber": (230, 160, 20), "blue": (30, 60, 220), "coral": (240, 100, 110)}
PLAN = VectorPlan(image_size=64)


def write_set(root: Path, split: str, each: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / split / name).mkdir(parents=True)
        for number in range(each):
            noise = rng.normal(0, 12, (72, 80, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    write_set(root, "train", 8, 0)
    return write_set(root, "val", 4, 1)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    found = load_backbone(None, model="nano", seed=1)
    found.freeze()
    return found


def sets(folder: Path) -> tuple[ClassificationSet, ClassificationSet]:
    train, test = (load("imagenet", folder, split) for split in ("train", "val"))
    assert isinstance(train, ClassificationSet)
    assert isinstance(test, ClassificationSet)
    return train, test


@pytest.fixture
def stores(backbone: Backbone, folder: Path, tmp_path: Path) -> tuple[VectorStore, VectorStore]:
    train, test = sets(folder)
    return (
        VectorStore(backbone, train, tmp_path, PLAN, source="train"),
        VectorStore(backbone, test, tmp_path, PLAN, source="val"),
    )


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_colours_are_told_apart_by_a_frozen_encoder(
    method: Any, stores: tuple[VectorStore, VectorStore]
) -> None:
    train, test = stores
    settings = ClassificationSettings(method=method, neighbours=5)
    scores, labels = frozen_scores(train, range(24), test, range(12), settings, seed=0)
    metrics, outcomes = measure(test.pictures.keys, scores, labels)
    assert metrics == {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0}
    assert "acc5" not in outcomes.metrics


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_a_fraction_without_a_class_cannot_name_it(
    method: Any, stores: tuple[VectorStore, VectorStore]
) -> None:
    train, test = stores
    settings = ClassificationSettings(method=method)
    amber_and_blue = [0, 1, 2, 8, 9, 10]
    scores, labels = frozen_scores(train, amber_and_blue, test, range(12), settings, seed=0)
    metrics, _ = measure(test.pictures.keys, scores, labels)
    assert metrics["acc1"] == pytest.approx(2 / 3)
    assert torch.isneginf(scores[:, 2]).all()


def test_metrics_are_those_of_zero_shot_and_outcomes_give_them_back() -> None:
    scores, labels = torch.randn(40, 7), torch.arange(40) % 7
    metrics, outcomes = measure([str(n) for n in range(40)], scores, labels)
    assert metrics == pytest.approx(classification_metrics(scores, labels))
    for name, value in metrics.items():
        found = values(outcomes.metrics[name], np.ones((1, 40)))
        assert found[0] == pytest.approx(value), name


def test_a_class_that_cannot_be_the_answer_is_not_among_the_five_best() -> None:
    scores = torch.tensor([[1.0, -math.inf, -math.inf, -math.inf, -math.inf]]).repeat(5, 1)
    metrics, _ = measure(list("abcde"), scores, torch.arange(5))
    assert metrics == pytest.approx({"acc1": 0.2, "acc5": 0.2, "mean_per_class_recall": 0.2})


def test_a_classifier_is_read_as_its_vectors_are(
    backbone: Backbone, stores: tuple[VectorStore, VectorStore]
) -> None:
    _, test = stores
    model = Classifier(backbone, 3, "penultimate")
    settings = ClassificationSettings(vectors=PLAN, batch=5)
    scores, labels = classifier_scores(model, test.pictures, range(12), settings)
    vectors_ND, truth = test(range(12))
    torch.testing.assert_close(scores, model.predict(vectors_ND).detach())
    assert labels.tolist() == truth.tolist()


def test_a_whole_set_without_pictures_of_a_class_is_refused(
    backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "set" / "train" / "zinc").mkdir(parents=True)
    write_set(tmp_path / "set", "train", 2, 0)
    empty = load("imagenet", tmp_path / "set", "train")
    words = "1 classes of imagenet have no training pictures, first 'zinc'"
    with pytest.raises(CapwrightError, match=words):
        require_every_class(empty.labels, empty)  # type: ignore[attr-defined, arg-type]
    unknown = replace(empty, labels=())  # type: ignore[call-arg]
    store = VectorStore(backbone, unknown, tmp_path, PLAN, source="train")  # type: ignore[arg-type]
    with pytest.raises(CapwrightError, match=words):
        frozen_scores(store, range(6), store, range(6), ClassificationSettings(), seed=0)


def test_splits_of_other_classes_are_refused(folder: Path) -> None:
    train, test = sets(folder)
    require_same_classes(train, test)
    other = replace(test, classes=("amber", "black", "coral"))
    with pytest.raises(CapwrightError, match="3 classes and the test split 3, first 'blue' and 'b"):
        require_same_classes(train, other)
    with pytest.raises(CapwrightError, match="3 classes and the test split 2: both need"):
        require_same_classes(train, replace(test, classes=("amber", "blue")))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": "svm"}, "method 'svm'"),
        ({"held_out": 0.0}, "held_out=0.0"),
        ({"neighbours": 0}, "neighbours=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(CapwrightError, match=words):
        ClassificationSettings(**wrong)
