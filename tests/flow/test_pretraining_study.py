"""The pretraining study: its table, and some arms on a few painted scenes: plumbing, no numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from capwright.core.errors import CapwrightError
from capwright.pretrain.config import PretrainConfig
from capwright.recipes import pretraining_study as study
from capwright.recipes import study_table
from capwright.recipes.pretraining_study import StudyConfig
from capwright.recipes.study_arms import TEACHER, arms
from scene_cutouts import make_cutouts

METRICS = dict.fromkeys(study_table.METRICS, 0.5)


def cell(arm: str, seed: int, miou: float, flops: float) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "flops": flops, **METRICS, "miou_frozen": miou}


def test_gains_are_paired_by_seed_and_the_control_is_interpolated() -> None:
    cells = [
        cell("alt", 0, 0.10, 100),
        cell("alt", 1, 0.14, 100),
        cell("selected", 0, 0.20, 100),
        cell("selected", 1, 0.26, 100),
        cell("selected ×2", 0, 0.22, 200),
        cell("selected ×4", 0, 0.30, 400),
        cell("sigmoid", 0, 0.25, 200),
        cell("xclip", 0, 0.27, 200 * 2**0.5),
        cell("nclip", 0, 0.27, 900),
    ]
    rows = {row["arm"]: row for row in study_table.rows(cells, arms(Path("w")))}
    assert rows["selected"]["gain"]["mean"] == pytest.approx(0.11)
    assert rows["selected"]["gain"]["interval95"] == pytest.approx(12.706 * 0.01, rel=1e-3)
    assert rows["sigmoid"]["gain"]["mean"] == pytest.approx(0.05)
    assert rows["sigmoid"]["gain"]["interval95"] is None
    assert rows["sigmoid"]["gain_same_compute"]["mean"] == pytest.approx(0.03)
    assert rows["xclip"]["gain_same_compute"]["mean"] == pytest.approx(0.27 - 0.26)
    assert rows["nclip"]["gain_same_compute"] is None  # nothing to compare with at that compute
    text = study_table.markdown(list(rows.values()))
    assert "| `sigmoid` | SigLIP's form of the loss | 2.00 | 25.0 | +5.0 | +3.0 |" in text


def test_an_unknown_arm_is_named(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="arm 'sigmoyd' is unknown: allowed are alt, selected"):
        study.run(StudyConfig(out=tmp_path, arms=("sigmoyd",)))


ARMS = (
    "selected", "captions: multi_positive", "self_distillation late", "pseudo_labels", "mobile",
    "reinforced",
)  # fmt: skip


def test_every_arm_is_a_plan_that_can_be_made(tmp_path: Path) -> None:
    base = PretrainConfig(out=tmp_path, work=tmp_path)
    for name, arm in arms(tmp_path).items():
        config = arm.apply(base)
        config.check_together()
        assert config.samples == round(arm.length * base.samples), name
        assert not arm.control or arm.control in arms(tmp_path), name


@pytest.mark.slow
def test_arms_are_trained_and_measured(tmp_path: Path) -> None:
    config = StudyConfig(
        out=tmp_path / "run",
        arms=ARMS,
        seeds=(0,),
        cutouts=make_cutouts(tmp_path / "cutouts", classes=3, per_class=6),
        per_class=6,
        pictures=400,
        labelled=20,
        tested=10,
        samples=64,
        batch=16,
        frozen_samples=100,
        finetuned_samples=50,
        quick=True,
        workers=1,
    )
    found = study.run(config)
    # the reinforced arm's teacher is trained too
    assert {row["arm"] for row in found["rows"]} == {*ARMS, TEACHER}
    assert all(0 <= row["miou_frozen"]["mean"] <= 1 for row in found["rows"])
    assert (config.out / "results.md").read_text().count("\n| `") == len(found["rows"])
    before = {path: path.stat().st_mtime_ns for path in (config.out / "cells").rglob("cell.json")}
    again = study.run(config)
    assert again["rows"] == json.loads(json.dumps(found["rows"]))
    assert {path: path.stat().st_mtime_ns for path in before} == before
