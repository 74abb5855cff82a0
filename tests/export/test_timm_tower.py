"""timm folders hold the image tower, with the same features."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from capwright.core.errors import CapwrightError
from capwright.export import ExportConfig, run
from capwright.models import towers

Make = Callable[..., Path]


def export(checkpoint: Path, out: Path) -> Any:
    return run(ExportConfig(checkpoint=str(checkpoint), to="timm", out=out))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quick_gelu": True},
        {"vision": {"no_ln_pre": True, "mlp_ratio": 3.0}},
        {"vision": {"act_kwargs": {"approximate": "tanh"}}},
    ],
    ids=["plain", "quick gelu", "no norm before", "tanh"],
)
def test_features_of_open_clips_transformer(
    options: dict[str, Any], make: Make, tmp_path: Path
) -> None:
    checkpoint = make(**options)
    assert export(checkpoint, tmp_path / "out").largest_difference < 1e-5
    model, _, _ = towers.load(checkpoint)
    tower = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        projected = tower(images) @ model.visual.proj
        assert torch.allclose(projected, model.encode_image(images), atol=1e-5)
        assert torch.allclose(
            tower.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0],
            towers.dense_features(model, images),
            atol=1e-5,
        )
    data = timm.data.resolve_model_data_config(tower)
    assert data["input_size"] == (3, 16, 16)
    assert data["mean"] == pytest.approx(towers.image_mean(model))
    assert data["crop_pct"] == 1.0


def test_features_of_a_tower_that_is_timms(ours: Path, tmp_path: Path) -> None:
    summary = export(ours, tmp_path / "out")
    assert summary.largest_difference == 0
    assert summary.load.startswith("import capwright.models\n")
    model, _, _ = towers.load(ours)
    tower = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(tower(images), model.visual.trunk(images))


@pytest.mark.slow
def test_another_process_reads_it_with_timm_alone(plain: Path, tmp_path: Path) -> None:
    summary = export(plain, tmp_path / "out")
    code = summary.load + (
        "\nimport sys, torch\nassert not any('capwright' in m for m in sys.modules)\n"
        "print(model(torch.zeros(1, 3, 16, 16)).shape[1])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "16\n", result.stderr


def test_what_timm_has_not_is_refused(make: Make, tmp_path: Path) -> None:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 8}
    with pytest.raises(CapwrightError, match="the image tower is a ModifiedResNet, which timm's"):
        export(make(vision=vision), tmp_path / "out")
