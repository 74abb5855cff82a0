"""The recipes of mirror depth: what they plan, and the scenes' recipe on toys by its command."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from capwright import datasets
from capwright.adapt.mirror_depth import Config
from capwright.cli import group
from capwright.recipes.load import load_recipe
from toy_scenes import write_scenes


@pytest.mark.parametrize("name", ["nyuv2", "kitti"])
def test_the_published_settings_and_pictures_that_fit(name: str) -> None:
    config: Config = load_recipe(f"mirror_depth_{name}")
    assert config.tokens == 64 and config.dataset in datasets.NAMES
    assert config.checkpoint == "ViT-B-16/openai"
    assert config.views.cut is not None and all(side % 16 == 0 for side in config.views.cut)
    frame = config.views.frame or (480, 640)
    assert config.views.cut[0] <= frame[0] and config.views.cut[1] <= frame[1]
    passes = config.schedule.steps * config.schedule.batch
    assert passes == pytest.approx(25 * {"nyuv2": 24_231, "kitti": 23_158}[name], rel=1e-4)


def test_the_mirror_of_the_scenes_fits_into_the_small_tower() -> None:
    from capwright.models.towers import NANO

    config: Config = load_recipe("mirror_depth_scenes")
    assert config.tokens + 2 == NANO["text_cfg"]["context_length"]
    assert config.seeds == (0, 1, 2)
    bins = torch.tensor(config.zero_shot.bins_m).log()
    assert torch.allclose(bins.diff(), bins.diff().mean(), atol=0.05)


def test_the_scenes_recipe_by_its_command(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    scenes, tested = write_scenes(tmp_path / "scenes"), write_scenes(tmp_path / "tested")
    result = CliRunner().invoke(
        group,
        [
            "adapt", "mirror-depth", "--data", str(scenes), "--test-data", str(tested),
            "--out", str(tmp_path / "out"), "--seeds", "1", "--set", "checkpoint=null",
            "--set", "schedule.warmup_steps=1", "--set", "schedule.steps=3",
            "--set", 'arms=["mirror","constant"]', "--set", "test_pictures=8",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert list(summary["arms"]) == ["mirror", "constant"]
    parameters = summary["trained_parameters"]
    assert parameters["mirror"] - parameters["constant"] > 30 * 128  # more than the mirror alone
    assert "| `constant` |" in (tmp_path / "out" / "results.md").read_text()
