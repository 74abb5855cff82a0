"""The dense study: its tables, and all cells on a few painted scenes: plumbing, no numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from capwright.core.errors import CapwrightError
from capwright.dense.training_free import METHODS
from capwright.recipes import dense_study as study
from capwright.recipes import dense_table
from capwright.recipes.dense_study import DenseStudyConfig
from scene_cutouts import make_cutouts


def segmented(arm: str, method: str, seed: int, miou: float) -> dict[str, Any]:
    return {
        "task": "training-free", "dataset": "scenes-seen", "arm": arm, "seed": seed,
        "protocol": "sclip/v1", "method": method, "metrics": {"miou": miou},
    }  # fmt: skip


def test_methods_are_compared_with_clip_seed_by_seed() -> None:
    cells = [
        segmented("alt", "clip", 0, 0.05),
        segmented("alt", "sclip", 0, 0.04),
        segmented("quality", "clip", 0, 0.10),
        segmented("quality", "clip", 1, 0.14),
        segmented("quality", "sclip", 0, 0.20),
        segmented("quality", "sclip", 1, 0.26),
        segmented("quality", "sclip", 2, 0.90),  # without its clip
    ]
    rows = {(row["arm"], row["method"]): row for row in dense_table.training_free(cells)}
    assert rows["alt", "sclip"]["above"] == {"mean": pytest.approx(-0.01), "interval95": None}
    assert rows["quality", "clip"]["above"] is None
    above = rows["quality", "sclip"]["above"]
    assert above["mean"] == pytest.approx(0.11)
    assert above["interval95"] == pytest.approx(12.706 * 0.01, rel=1e-3)
    text = dense_table.training_free_table(list(rows.values()))
    assert "| `sclip` | 4.0 | -1.0 | 45.3 ± 96.4 | +11.0 ± 12.7 |" in text


def transferred(arm: str, fraction: float, seed: int, miou: float) -> dict[str, Any]:
    metrics = {"miou": miou, "macc": 0.5}
    return {
        "task": "segmentation", "arm": arm, "seed": seed, "fraction": fraction,
        "items": round(1000 * fraction), "metrics": metrics,
    }  # fmt: skip


def test_transfer_is_compared_with_the_same_labels_and_with_fewer() -> None:
    scores = {"alt": (0.10, 0.14, 0.20), "quality": (0.12, 0.18, 0.24)}
    cells = [
        transferred(arm, fraction, seed, score + 0.01 * seed)
        for arm, row in scores.items()
        for fraction, score in zip((0.01, 0.1, 1.0), row, strict=True)
        for seed in (0, 1)
    ]
    rows = dense_table.transfer([*cells, transferred("quality", 1.0, 2, 0.9)])
    at = {(row["arm"], row["fraction"]): row for row in rows}
    assert at["alt", 0.1]["gain"] is None
    assert at["alt", 0.1]["value"]["mean"] == pytest.approx(0.145)
    assert at["quality", 0.1]["gain"]["mean"] == pytest.approx(0.04)
    assert at["quality", 1.0]["gain"]["mean"] == pytest.approx(0.04)  # seed 2 has no control
    rows = dense_table.transfer(cells)
    curves = dense_table.curves(rows, dense_table.HEADLINES[0])
    assert list(curves) == ["alt", "quality"]
    assert [point.items for point in curves["alt"]] == [10, 100, 1000]
    text = dense_table.markdown({"training_free": [], "transfer": rows})
    assert "| labels | 1% | 10% | 100% |" in text
    assert "| `quality` - `alt` | +2.0 ± 0.0 | +4.0 ± 0.0 | +4.0 ± 0.0 |" in text
    # 0.205 is a third of the way up from 10% to all: 10^(1 - 1/3)
    assert "needs for what `alt` reaches with all: 4.6." in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("colours",)}, "task 'colours' is unknown: allowed are training-free"),
        ({"arms": ("best",)}, "arm 'best' is unknown: allowed are alt, quality, scratch"),
    ],
)
def test_faults_of_the_plan_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=message):
        DenseStudyConfig(out=tmp_path, **change)


def test_a_folder_without_a_demo_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"plan": {"pictures": 3}}')
    with pytest.raises(CapwrightError, match="holds no demo of this version"):
        study.run(DenseStudyConfig(out=tmp_path / "out", demo=tmp_path))


@pytest.mark.slow
def test_arms_are_pretrained_and_measured(tmp_path: Path) -> None:
    config = DenseStudyConfig(
        out=tmp_path / "run",
        seeds=(0,),
        cutouts=make_cutouts(tmp_path / "cutouts", classes=3, per_class=6),
        per_class=6,
        pictures=400,
        labelled=20,
        tested=6,
        samples=64,
        batch=16,
        quick=True,
        workers=1,
        fractions=(0.5, 1.0),
        steps=dict.fromkeys(study.TRANSFERRED, 2),
    )
    found = study.run(config)
    rows = found["training_free"]
    assert len(rows) == 2 * 2 * 2 * len(METHODS)  # arms, protocols, with background or not
    assert all(0 <= row["miou"]["mean"] <= 1 for row in rows)
    rows = {(row["task"], row["arm"], row["fraction"]): row for row in found["transfer"]}
    assert len(rows) == 3 * (3 * 2 + 1)  # detection has one fraction
    assert rows["depth", "quality", 0.5]["items"] == 10
    assert all(row["value"]["mean"] >= 0 for row in found["transfer"])
    assert "<svg" in (config.out / "segmentation-miou.svg").read_text()
    cells = config.out / "cells"
    measured = [*(cells / study.TRAINING_FREE).rglob("*.json"), *cells.rglob("result.json")]
    before = {path: path.stat().st_mtime_ns for path in measured}
    assert len(before) == 2 * 2 + 3 * (3 * 2 + 1)
    again = study.run(config)
    assert again["cells"] == json.loads(json.dumps(found["cells"]))
    assert {path: path.stat().st_mtime_ns for path in measured} == before
    assert (config.out / "results.md").read_text().count("\n| `sclip`") == 2
