"""Recipes of depth, normals and classification: they build, run when shrunk, and say true hours."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import toy_scenes
from capwright.core.config import override
from capwright.dense.backbone import load_backbone
from capwright.evaluate.transfer import depth, normals, task
from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.finetune_classifier import Classifier
from capwright.evaluate.transfer.vectors import vectors
from capwright.recipes.load import load_recipe

PIXELS = ("nyuv2_glp", "nyuv2_linear", "kitti_glp", "nyuv2_normals")
CLASSES = ("imagenet_linear", "imagenet_knn", "imagenet_finetune")
SCENES = ("scenes_depth", "scenes_normals")
PACE = 48e12  # FLOP a second of a GPU, as the recipes have it
SPLITS = 1_281_167 + 50_000  # pictures of ImageNet's two splits
TINY_VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}


def docstring(name: str) -> str:
    module = __import__(f"capwright.recipes.{name}", fromlist=["config"])
    return " ".join(str(module.__doc__).split())


def gigaflops(config: TransferConfig) -> float:
    """Of one forward pass of ViT-B/16 on a view of the recipe."""
    with torch.device("meta"):
        backbone = load_backbone(None, model="ViT-B-16").eval()
        if config.task == "depth":
            assert config.depth.views.cut is not None
            caps = depth.Scoring(least_m=0.1, most_m=10, crop="none")
            run: Any = depth.build(backbone, config.depth, caps).eval()
            images = torch.zeros(1, 3, *config.depth.views.cut)
        elif config.task == "normals":
            assert config.normals.views.cut is not None
            run = normals.build(backbone, config.normals).eval()
            images = torch.zeros(1, 3, *config.normals.views.cut)
        else:
            images = torch.zeros(1, 3, 224, 224)
            kind = config.classification.vectors.kind
            run = Classifier(backbone, 1000, kind)
            if config.classification.method != "finetune":
                run = lambda x: vectors(backbone, x, kind)  # noqa: E731
        with (
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
        ):
            run(images)
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("name", [*PIXELS, *CLASSES])
def test_hours_follow_from_the_flops(name: str) -> None:
    config, text = load_recipe(name), docstring(name)
    found = re.search(r"about ([\d.]+) hours", text)
    said = re.search(r"([\d.]+) GFLOP \((three|one) forward", text)
    assert found is not None
    assert said is not None
    passes = {"three": 3, "one": 1}[said[2]]
    assert (config.mode == "finetuned") == (passes == 3)
    cost = passes * gigaflops(config)
    assert float(said[1]) == pytest.approx(cost, rel=0.08)
    trained = config.method in ("linear", "knn") and config.task == "classification"
    views = SPLITS if trained else config.schedule.steps * config.schedule.batch
    hours = views * cost * 1e9 / PACE / 3600
    if name == "imagenet_linear":
        hours += 0.5  # the fits
    assert float(found[1]) == pytest.approx(hours, rel=0.1)


@pytest.mark.parametrize("name", [*PIXELS, *CLASSES, *SCENES])
def test_recipes_say_what_is_published_and_from_where(name: str) -> None:
    config, text = load_recipe(name), docstring(name)
    assert f"{config.task} {name} --checkpoint MODEL" in text
    assert "Published: " in text
    assert "ours" in text
    assert config.out == Path("runs") / name
    assert not config.checkpoint


@pytest.mark.parametrize("name", SCENES)
def test_recipes_of_the_scenes_run_when_they_are_shrunk(name: str, tmp_path: Path) -> None:
    for split in ("probe", "seen"):
        toy_scenes.write_scenes(tmp_path / split)
    config = replace(
        load_recipe(name), checkpoint="scratch", model=TINY_VIT, data=tmp_path, out=tmp_path / "out"
    )
    short = ["schedule.warmup_steps=1", "schedule.steps=2", "schedule.batch=4", "device=cpu"]
    short += [f"scratch_{each}" for each in short[:3]] if config.scratch_schedule else []
    (row,) = task.run(override(config, short)).rows
    protocol = {"depth": depth.PROTOCOL, "normals": normals.PROTOCOL}[config.task]
    assert row["protocol"]["name"] == protocol.name


def test_normals_of_nyuv2_are_learned_and_tested_from_its_depths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        folder = tmp_path / "official_splits" / split / "room"
        folder.mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"rgb_{number:05d}.jpg")
            slope = np.tile(np.linspace(2000, 3000, 64).astype(np.uint16), (48, 1))
            Image.fromarray(slope).save(folder / f"sync_depth_{number:05d}.png")
    config = replace(
        load_recipe("nyuv2_normals"), checkpoint="scratch", model=TINY_VIT, data=tmp_path,
        out=tmp_path / "out",
    )  # fmt: skip
    short = ["schedule.warmup_steps=1", "schedule.steps=2", "schedule.batch=2", "device=cpu"]
    short += ["normals.views.cut=[32, 32]", "workers=0"]
    (row,) = task.run(override(config, short)).rows
    assert row["dataset"] == "nyuv2-test"
    assert 0 < row["metrics"]["mean_degrees"] < 180
