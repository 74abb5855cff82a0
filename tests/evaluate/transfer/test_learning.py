"""Depth, normals and classes are learned by the loop, and a broken run ends as an unbroken one."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.datasets.sets import ClassificationItem, ClassificationSet, LabelledSet
from capwright.dense.backbone import load_backbone
from capwright.evaluate.transfer import classification, depth, normals
from capwright.evaluate.transfer.finetune_classifier import (
    Classifier,
    ClassifierLearner,
    FineTuning,
)
from capwright.evaluate.transfer.loop import Batches, Schedule, fit
from capwright.evaluate.transfer.pixel_values import PixelLearner
from capwright.evaluate.transfer.pixel_views import ViewSettings
from capwright.evaluate.transfer.vectors import VectorPlan
from capwright.pretrain.loading import in_steps
from pixel_sets import depth_set, normals_set

COUNT = 6
SIZES = ((48, 64),) * COUNT
TINY_VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}
TASKS = ("depth", "normals", "classification")


def class_item(number: int) -> ClassificationItem:
    """Stripes along or across."""
    rng = np.random.default_rng(number)
    lines = np.repeat(rng.integers(0, 2, 16) * 200, 4).astype(np.uint8)
    pixels = np.repeat(lines[None] if number % 2 else lines[:, None], 64, axis=1 - number % 2 - 1)
    return ClassificationItem(
        key=str(number),
        image=Image.fromarray(
            np.broadcast_to(pixels.reshape(64, 64)[..., None], (64, 64, 3)).copy()
        ),
        label=number % 2,
    )


CLASSES = ClassificationSet(
    name="stripes",
    keys=tuple(map(str, range(COUNT))),
    read=class_item,
    classes=("across", "along"),
)


def made(task: str) -> tuple[Any, LabelledSet[Any], Callable[[], float]]:
    """A learner, its set, and its error on the same pictures."""
    backbone = load_backbone(None, model=TINY_VIT, seed=0)
    torch.manual_seed(0)
    if task == "classification":
        model = Classifier(backbone, 2, "penultimate")
        learner: Any = ClassifierLearner(
            model,
            CLASSES,
            FineTuning(crop_area=(0.9, 1.0), crop_aspect=(1.0, 1.0), flip=False, mixup=0.1),
            64,
        )
        plan = classification.ClassificationSettings(vectors=VectorPlan(image_size=64))

        def wrong() -> float:
            scores, labels = classification.classifier_scores(model, CLASSES, range(COUNT), plan)
            return 1 - classification.measure(CLASSES.keys, scores, labels)[0]["acc1"]  # type: ignore[operator]

        return learner, CLASSES, wrong
    views = ViewSettings(cut=(48, 64), colours=0.0)
    if task == "depth":
        settings = depth.DepthSettings(head="linear", bins=32)
        deep = depth_set(SIZES)
        caps = depth.scoring(settings, deep)
        whole = depth.build(backbone, settings, caps)
        learner = PixelLearner(whole, depth.quantity(settings, caps), views)
        return learner, deep, lambda: depth.measure(whole, deep, range(COUNT), settings)[0]["rmse"]  # type: ignore[return-value]
    facing, light = normals_set(SIZES), normals.NormalsSettings(head="light", width=16)
    probe = normals.build(backbone, light)
    learner = PixelLearner(probe, normals.QUANTITY, views)
    return (
        learner,
        facing,
        lambda: normals.measure(probe, facing, range(COUNT), light)[0]["mean_degrees"],
    )  # type: ignore[return-value]


def learn(
    made_task: tuple[Any, LabelledSet[Any], Any],
    folder: Path,
    steps: int,
    numbers: Sequence[int] = range(COUNT),
) -> None:
    learner, pictures, _ = made_task
    schedule = Schedule(
        steps=steps, batch=4, learning_rate=3e-3, encoder_learning_rate=1e-3, layer_decay=0.9
    )
    fit(
        learner, pictures, numbers, schedule,
        folder=folder, seed=0, save_every=2, precision="fp32", view=learner.view,
    )  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_a_few_pictures_are_learned_by_heart(task: str, tmp_path: Path) -> None:
    parts = made(task)
    error = parts[2]
    before = error()
    learn(parts, tmp_path, 40)
    assert error() < 0.6 * before


@pytest.mark.parametrize("task", TASKS)
def test_a_broken_run_ends_as_an_unbroken_one(task: str, tmp_path: Path) -> None:
    unbroken = made(task)
    learn(unbroken, tmp_path / "unbroken", 6)
    broken = made(task)
    real, calls = broken[0].loss, []

    def failing(*given: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)  # type: ignore[no-any-return]

    broken[0].loss = failing
    with pytest.raises(KeyboardInterrupt):
        learn(broken, tmp_path / "broken", 6)
    again = made(task)
    learn(again, tmp_path / "broken", 6)
    expected, found = (each[0].module.state_dict() for each in (unbroken, again))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    fresh = made(task)[0].module.state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in expected.items())


@pytest.mark.parametrize("task", TASKS)
def test_workers_read_the_same(task: str, tmp_path: Path) -> None:
    """Views are made in the workers: they pickle, and their draws are those of the step."""
    learner, pictures, _ = made(task)
    source = Batches(pictures, range(COUNT), 2, 0, learner.view)
    assert pickle.loads(pickle.dumps(learner.view)).__class__ is learner.view.__class__
    alone = [batch for _, batch in in_steps(source, range(3), 0)]
    for (_, batch), expected in zip(in_steps(source, range(3), 1), alone, strict=True):
        for got, wanted in zip(batch, expected, strict=True):
            assert torch.equal(got[0], wanted[0])
