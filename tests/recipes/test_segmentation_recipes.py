"""Recipes of segmentation: they build as they are, run when shrunk, and say true numbers."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import toy_scenes
from capwright import datasets
from capwright.dense.backbone import load_backbone
from capwright.evaluate.transfer import segmentation, task
from capwright.recipes.load import load_recipe

ADE20K = ("ade20k_upernet", "ade20k_semantic_fpn", "ade20k_linear")
PAGE = Path(__file__).parents[2] / "docs" / "transfer" / "segmentation.md"
PACE = 48e12  # FLOP a second of a GPU, as the pages have it
TINY_VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}


def gigaflops(name: str, model: str) -> float:
    """Of one view, forward."""
    config = load_recipe(name)
    side = config.segmentation.views.side
    with torch.device("meta"):
        backbone = load_backbone(None, model=model).eval()
        whole = segmentation.build(backbone, config.segmentation, 150).eval()
        images = torch.zeros(1, 3, side, side)
        with (
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
        ):
            whole.both(images)
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("name", ["ade20k_knn", *ADE20K])
def test_splits_are_the_sets_own(name: str) -> None:
    config = load_recipe(name)
    splits = datasets.module_of(config.dataset).SPLITS
    assert {config.train_split, *config.test_splits} <= set(splits)
    assert config.task == "segmentation"


def test_the_page_says_true_costs() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    upernet, fpn = (
        gigaflops("ade20k_upernet", "ViT-B-16"),
        gigaflops("ade20k_semantic_fpn", "MobileCLIP-S2"),
    )
    said = re.search(r"UperNet (\d+) GFLOP .*? Semantic FPN (\d+)\.", text)
    assert said is not None
    assert (int(said[1]), int(said[2])) == (round(upernet), round(fpn))
    hours = re.search(r"is (\d+) hours for `ade20k_upernet` and ([\d.]+) for", text)
    assert hours is not None
    for name, each, found in (
        ("ade20k_upernet", upernet, hours[1]), ("ade20k_semantic_fpn", fpn, hours[2]),
    ):  # fmt: skip
        schedule = load_recipe(name).schedule
        seconds = 3 * each * 1e9 * schedule.steps * schedule.batch / PACE
        assert float(found) == pytest.approx(seconds / 3600, rel=0.02)


@pytest.mark.parametrize("head", ["upernet", "semantic_fpn", "linear", "knn"])
def test_the_scenes_run_when_shrunk(head: Any, tmp_path: Path) -> None:
    for split in ("probe", "seen"):
        toy_scenes.write_scenes(tmp_path / "scenes" / split)
    config = load_recipe("scenes_segmentation")
    short = replace(config.scratch_schedule, steps=2, batch=2, warmup_steps=1)
    summary = task.run(
        replace(
            config,
            checkpoint="scratch",
            model=TINY_VIT,
            data=tmp_path / "scenes",
            out=tmp_path / "out",
            scratch_schedule=short,
            segmentation=replace(config.segmentation, head=head),
            precision="fp32",
        )
    )
    assert [row["options"]["items"] for row in summary.rows] == [24]
    assert summary.rows[0]["metrics"]["miou"] > 0
