"""Recipes of detection: what they promise in their text, and a run of the small one."""

from pathlib import Path

import pytest
import torch

from capwright.datasets.scenes import SceneConfig
from capwright.datasets.scenes import run as make_scenes
from capwright.dense.backbone import load_backbone
from capwright.evaluate.results import read_results
from capwright.evaluate.transfer import detection, task
from capwright.recipes.transfer_plan import transfer_plan
from scene_cutouts import make_cutouts

RECIPES = ("coco_mask_rcnn_1x", "coco_vitdet", "scenes_detection")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("encoder", ["ViT-B-16", "nano-mci"])
def test_recipes_fit_encoders_of_both_kinds(name: str, encoder: str) -> None:
    config = transfer_plan("detection", name, {}, [])
    assert config.out == Path("runs") / name
    with torch.device("meta"):
        model = detection.build(load_backbone(None, model=encoder), config.detection, 80)
    assert model.roi_heads.box_predictor.cls_score.out_features == 81
    floor = sum(p.numel() for p in model.backbone.backbone.parameters())
    assert sum(p.numel() for p in model.parameters()) > floor


def test_the_rate_of_the_1x_recipe_falls_after_passes_8_and_11() -> None:
    schedule = transfer_plan("detection", "coco_mask_rcnn_1x", {}, []).schedule
    one_pass = 118_287 / schedule.batch
    assert schedule.steps == pytest.approx(12 * one_pass, abs=1)
    rates = [schedule.factor(round(passes * one_pass)) for passes in (7.9, 8.1, 10.9, 11.1)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])


def test_the_long_recipe_sees_100_passes_in_smaller_batches_too() -> None:
    config = transfer_plan(
        "detection", "coco_vitdet", {}, ["schedule.batch=16", "schedule.steps=739293"]
    )
    assert config.schedule.steps * 16 == pytest.approx(100 * 118_287, abs=16)
    assert config.detection.views.jitter == (0.1, 2.0)


def test_the_recipe_of_the_scenes_runs(tmp_path: Path) -> None:
    cutouts = make_cutouts(tmp_path / "cutouts")
    for split in ("probe", "seen"):
        out = tmp_path / "scenes" / split
        make_scenes(SceneConfig(cutouts=cutouts, out=out, count=6, size=48, workers=1))
    config = transfer_plan(
        "detection",
        "scenes_detection",
        {"data": tmp_path / "scenes", "out": tmp_path / "out", "checkpoint": "scratch"},
        ["scratch_schedule.warmup_steps=1", "scratch_schedule.steps=2", "scratch_schedule.batch=2",
         "detection.heads.least_score=0.3", "precision=fp32"],
    )  # fmt: skip
    assert task.run(config).measured == 1
    (result,) = read_results(tmp_path / "out/1/0/result.json")
    assert result.dataset == "scenes-seen" and 0 <= result.metrics["mask_ap"] <= 1
