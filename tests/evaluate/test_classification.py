from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from capwright.core.errors import CapwrightError
from capwright.evaluate.classification import (
    ClassificationConfig,
    class_prompts,
    class_vectors,
    classification_metrics,
    largest_class,
    run,
)
from capwright.evaluate.results import read_results


def test_metrics_equal_a_plain_reference() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(60, 8), torch.randint(0, 7, (60,))
    logits[torch.arange(60), labels] += 1.0
    order = [sorted(range(8), key=lambda c, row=row: -row[c]) for row in logits.tolist()]
    first = [o[0] == t for o, t in zip(order, labels.tolist(), strict=True)]
    five = [t in o[:5] for o, t in zip(order, labels.tolist(), strict=True)]
    recall = [
        np.mean([hit for hit, t in zip(first, labels.tolist(), strict=True) if t == c])
        for c in range(7)
    ]
    assert classification_metrics(logits, labels) == pytest.approx(
        {"acc1": np.mean(first), "acc5": np.mean(five), "mean_per_class_recall": np.mean(recall)}
    )


def test_the_largest_object_gives_the_label_and_the_background_none() -> None:
    seg = np.zeros((3, 4, 4), np.uint8)
    seg[0, 0, 0] = 2
    seg[0, 1:3] = 1
    seg[1, 0] = 255
    seg[1, 1, 0] = 3
    assert largest_class(seg, 4).tolist() == [1, 3, 0]


def test_a_class_vector_is_the_mean_over_names_and_templates(encoder) -> None:
    vectors = class_vectors(encoder, [["apple", "pear"], ["berry"]], ["{}", "a {}"])
    texts = ["apple", "a apple", "pear", "a pear"]
    mean = encoder.text_embeddings(texts).mean(dim=0)
    torch.testing.assert_close(vectors[0], mean / mean.norm())
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_the_words_of_a_class_are_its_objects_or_its_name(toy_scenes) -> None:
    scenes = toy_scenes(4)
    assert class_prompts(scenes, "objects") == {1: ["red apple"], 2: ["blue berry"]}
    assert class_prompts(scenes, "classes") == {1: ["apples"], 2: ["berries"]}


def test_a_box_of_an_unknown_class_is_named(toy_scenes) -> None:
    scenes = toy_scenes(2)
    odd = replace(scenes.objects[0][0], class_name="clouds")
    with pytest.raises(CapwrightError, match=r"class 'clouds', .* allowed are apples, berries"):
        class_prompts(replace(scenes, objects=((odd,), scenes.objects[1])), "objects")


def test_a_run_writes_the_results(tmp_path: Path, toy_folders, tiny) -> None:
    out = tmp_path / "zero.json"
    summary = run(
        ClassificationConfig(checkpoint=None, model=tiny, data=toy_folders["seen"], out=out)
    )
    (row,) = read_results(out)
    assert row.metrics == summary.metrics
    assert row.task == "zeroshot_classification"
    assert (summary.pictures, summary.classes, summary.without_object) == (8, 2, 0)
    assert set(row.metrics) == {"acc1", "acc5", "mean_per_class_recall"}


def test_a_template_without_a_place_for_the_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=r"template 'a photo' needs exactly one \{\}"):
        ClassificationConfig(
            checkpoint=None, data=tmp_path, out=tmp_path / "r.json", templates=("a photo",)
        )
