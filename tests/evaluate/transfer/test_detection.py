"""Detection by transfer: the evaluation path, learning, continuation, whole runs, bad input."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import object_sets
from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.datasets.coco_masks import decode_mask
from capwright.datasets.sets import require_same_classes
from capwright.dense.backbone import load_backbone
from capwright.dense.mask_rcnn import MaskRCNNSettings
from capwright.evaluate.compare import CompareConfig
from capwright.evaluate.compare import run as compare
from capwright.evaluate.outcomes import read_outcomes
from capwright.evaluate.results import read_results
from capwright.evaluate.transfer import detection, task
from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.detection import (
    DetectionLearner,
    DetectionSettings,
    detections,
    measure,
    require_objects,
)
from capwright.evaluate.transfer.detection_views import DetectionViews
from capwright.evaluate.transfer.loop import STATE, Schedule, fit
from object_sets import object_set

TINY_VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}
HEADS = MaskRCNNSettings(
    width=24,
    anchors=(3, 4.5),
    canonical=56,
    head_width=48,
    mask_width=16,
    candidates=100,
    proposals=50,
    sampled=32,
)
SETTINGS = DetectionSettings(
    heads=HEADS, views=DetectionViews(short_sides=(48,), long_side=64), batch=4
)
SCHEDULE = Schedule(
    steps=4, batch=2, learning_rate=1e-3, encoder_learning_rate=1e-3, layer_decay=0.8
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Perfect(nn.Module):
    """Knows the pictures that come, in their order, and what is in them."""

    def __init__(self, items: Sequence[Any], scale: float) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.items, self.scale, self.batches = list(items), scale, []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.batches.append(len(images))
        return [self.found(image) for image in images]

    def found(self, image: Tensor) -> dict[str, Tensor]:
        item = self.items.pop(0)
        assert image.shape[1:] == (round(48 * self.scale), round(64 * self.scale))
        kept = ~item.crowd_N
        count = int(kept.sum())
        return {
            "boxes": torch.from_numpy(item.boxes_N4[kept]) * self.scale,
            "labels": torch.from_numpy(item.labels_N[kept]) + 1,
            "scores": torch.full((count,), 0.9),
            "masks": torch.ones(count, 1, 28, 28),  # rectangles fill their boxes
        }


@pytest.mark.parametrize("short", [48, 72, 24])
def test_a_perfect_predictor_has_an_ap_of_1(short: int) -> None:
    pictures = object_set(11)
    settings = replace(SETTINGS, views=DetectionViews(short_sides=(short,), long_side=200))
    model = Perfect([pictures[n] for n in range(11)], short / 48)
    metrics, outcomes = measure(model, pictures, range(11), settings)
    for name in ("box_ap", "box_ap75", "mask_ap", "mask_ap50", "box_ar100"):
        assert metrics[name] == pytest.approx(1, abs=1e-9), name
    assert model.batches == [4, 4, 3]
    assert outcomes.keys == tuple(str(100 + n) for n in range(11))
    ones = np.ones((1, 11))
    assert outcomes.precisions["mask_ap"].values(ones)[0] == pytest.approx(1, abs=1e-9)


def test_rows_are_cocos_at_the_stored_size() -> None:
    pictures = object_set(3)
    settings = replace(SETTINGS, views=DetectionViews(short_sides=(96,), long_side=200))
    rows = detections(Perfect([pictures[1]], 2), pictures, [1], settings)
    assert [row["category_id"] for row in rows] == [
        pictures.category_ids[label] for label in pictures[1].labels_N
    ]
    assert {row["image_id"] for row in rows} == {101}
    for row, box, mask_HW in zip(
        rows, pictures[1].boxes_N4.tolist(), pictures[1].masks_NHW, strict=True
    ):
        assert row["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        found_HW = decode_mask(row["segmentation"], 48, 64)
        np.testing.assert_array_equal(found_HW, mask_HW)


def test_pictures_that_are_not_tested_do_not_count() -> None:
    pictures = object_set(11)
    metrics, outcomes = measure(Perfect([pictures[2]], 1), pictures, [2], SETTINGS)
    assert metrics["box_ap"] == pytest.approx(1) and outcomes.keys == ("102",)
    metrics, _ = measure(Perfect([pictures[4]], 1), pictures, [4], SETTINGS)
    assert metrics["box_ap"] is None  # no object, nothing found, nothing to measure


def learner(seed: int = 0, settings: DetectionSettings = SETTINGS) -> DetectionLearner:
    backbone = load_backbone(None, model=TINY_VIT, seed=seed)
    torch.manual_seed(seed)
    return DetectionLearner(detection.build(backbone, settings, 2), settings, 2)


def learned(own: Any, folder: Path, **changes: Any) -> dict[str, Tensor]:
    options: dict[str, Any] = {"seed": 1, "precision": "fp32", "save_every": 2} | changes
    fit(own, object_set(6), range(6), SCHEDULE, folder=folder, view=own.view, **options)
    return dict(own.module.state_dict())


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = learned(learner(), tmp_path / "whole")

    class Killed(DetectionLearner):
        steps = 0

        def loss(self, items: Any, draws: np.random.Generator) -> Tensor:
            self.steps += 1
            if self.steps == 4:
                raise KeyboardInterrupt
            return super().loss(items, draws)

    with pytest.raises(KeyboardInterrupt):
        learned(Killed(learner().module, SETTINGS, 2), tmp_path / "killed")
    assert torch.load(tmp_path / "killed" / STATE, weights_only=True)["step"] == 2
    again = learned(learner(), tmp_path / "killed")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    start = learner().module.state_dict()
    assert not torch.equal(whole["rpn.head.cls_logits.weight"], start["rpn.head.cls_logits.weight"])


def test_workers_see_what_one_process_sees(tmp_path: Path) -> None:
    alone = learned(learner(), tmp_path / "alone")
    shared = learned(learner(), tmp_path / "shared", workers=1)
    assert all(torch.equal(alone[name], shared[name]) for name in alone)


def test_norms_of_the_encoder_stay_unless_asked() -> None:
    for still in (True, False):
        backbone = load_backbone(None, model="timm:resnet10t")
        module = detection.build(backbone, replace(SETTINGS, still_norms=still), 2).train()
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all(norm.training != still for norm in norms)


@pytest.mark.slow
def test_a_few_pictures_are_learned_by_heart(tmp_path: Path) -> None:
    own = learner()
    schedule = replace(SCHEDULE, steps=200, batch=4, learning_rate=3e-3, grad_clip=10.0)
    schedule = replace(schedule, shape="cosine", warmup_steps=20)
    fit(
        own, object_set(4), range(4), schedule, folder=tmp_path, seed=0, precision="fp32",
        save_every=1000, view=own.view,
    )  # fmt: skip
    metrics, _ = measure(own.module, object_set(4), range(4), SETTINGS)
    assert metrics["box_ap50"] > 0.95 and metrics["mask_ap50"] > 0.95
    assert metrics["box_ap"] > 0.6 and metrics["mask_ap"] > 0.6


def write_coco(root: Path) -> Path:
    """Two splits in COCO's layout."""
    for split, count in (("train2017", 6), ("val2017", 4)):
        pictures = object_set(count)
        annotations = json.loads(json.dumps(pictures.annotations))
        for number, image in enumerate(annotations["images"]):
            image["file_name"] = f"{image['file_name']}.png"
            (root / split).mkdir(parents=True, exist_ok=True)
            pictures[number].image.save(root / split / image["file_name"])
        (root / "annotations").mkdir(exist_ok=True)
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(annotations))
    return root


def plan(data: Path, out: Path, **changes: Any) -> TransferConfig:
    made = TransferConfig(
        task="detection", checkpoint="scratch", model=TINY_VIT, dataset="coco-instances",
        data=data, train_split="train2017", test_splits=("val2017",), out=out,
        schedule=replace(SCHEDULE, steps=2), detection=SETTINGS, precision="fp32", device="cpu",
    )  # fmt: skip
    return replace(made, **changes)


def test_a_run_writes_results_and_compare_says_how_sure_the_difference_is(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco")
    assert task.run(plan(data, tmp_path / "a")).measured == 1
    (result,) = read_results(tmp_path / "a/1/0/result.json")
    assert (result.task, result.protocol.name, result.protocol.version) == (
        "detection", "transfer-detection", "v1",
    )  # fmt: skip
    assert result.options["method"] == "mask_rcnn" and result.options["mode"] == "finetuned"
    assert 0 <= result.metrics["box_ap"] <= 1 and "mask_ap" in result.metrics
    outcomes = read_outcomes(tmp_path / "a/1/0/result.npz")[0]
    assert len(outcomes.keys) == 4 and "mask_ap75" in outcomes.precisions
    for name, matches in outcomes.precisions.items():
        value = matches.values(np.ones((1, 4)))[0]
        expected = result.metrics[name]
        assert value == pytest.approx(expected if expected is not None else np.nan, nan_ok=True)
    task.run(plan(data, tmp_path / "b", seeds=(1,)))
    files = tuple(
        tmp_path / name / "1" / seed / "result.json" for name, seed in (("a", "0"), ("b", "1"))
    )
    compared = compare(CompareConfig(sources=files, resamples=20))
    row = next(row for row in compared.rows if row.metric == "box_ap")
    cell = row.cells[compared.columns[1]]
    assert cell.low is not None and cell.low <= cell.difference <= cell.high
    asked = CliRunner().invoke(
        group, ["compare", *map(str, files), "--resamples", "20", "--format", "csv"]
    )
    rows = list(csv.DictReader(io.StringIO(asked.output)))
    (found,) = (r for r in rows if r["metric"] == "box_ap" and r["difference"])
    assert (float(found["low"]), float(found["high"])) == (cell.low, cell.high)


def test_training_pictures_without_any_object_are_refused() -> None:
    pictures = object_set(10)
    require_objects(pictures, [4, 0])
    with pytest.raises(CapwrightError, match="none of the 2 training pictures of rectangles has"):
        require_objects(pictures, [4, 9])
    crowds = [row for row in pictures.annotations["annotations"] if row["iscrowd"]]
    only = replace(pictures, annotations={**pictures.annotations, "annotations": crowds})
    with pytest.raises(CapwrightError, match="none of the 10 training pictures"):
        require_objects(only, range(10))


def test_splits_with_other_classes_are_refused() -> None:
    pictures = object_set(3)
    require_same_classes(pictures, pictures)
    with pytest.raises(CapwrightError, match="first 'blue' and 'green': both need the same"):
        require_same_classes(pictures, replace(pictures, classes=("red", "green")))
    with pytest.raises(CapwrightError, match="2 classes and the test split 1: both"):
        require_same_classes(pictures, replace(pictures, classes=("red",)))


def test_a_test_split_with_a_class_more_is_refused_before_learning(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco")
    path = data / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 9, "name": "green"})
    path.write_text(json.dumps(content))
    with pytest.raises(CapwrightError, match="has 2 classes and the test split 3"):
        task.run(plan(data, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob(STATE))


def test_a_set_without_objects_is_no_set_for_detection(tmp_path: Path) -> None:
    with pytest.raises(
        CapwrightError, match="imagenet is not for detection: take a set with boxes"
    ):
        (tmp_path / "train/ants").mkdir(parents=True)
        object_sets.rectangles(0, 20, 20).image.save(tmp_path / "train/ants/0.png")
        task.run(replace(plan(tmp_path, tmp_path / "out"), dataset="imagenet", train_split="train"))


def test_no_test_batch_is_refused() -> None:
    with pytest.raises(CapwrightError, match="batches of 0 test pictures"):
        DetectionSettings(batch=0)
