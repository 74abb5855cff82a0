"""The study of MUST on drawings, small: sets, cells, tables, and what a second run does again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.recipes.must_scenes import FULL, MustStudyConfig, config, run
from scene_cutouts import make_cutouts
from tiny_must import write_checkpoint


@pytest.fixture
def study(tmp_path: Path) -> MustStudyConfig:
    torch.set_num_threads(1)
    (tmp_path / "clip").mkdir()
    return MustStudyConfig(
        out=tmp_path / "study",
        checkpoint=str(write_checkpoint(tmp_path / "clip")),
        cutouts=make_cutouts(tmp_path / "cutouts"),
        styles=("inked",),
        arms=(FULL, "pseudo-labels alone"),
        seeds=(0, 1),
        per_class=6,
        train=4,
        test=2,
        run=replace(config(), mask_patch=8, epochs=2, batch=8, precision="fp32"),
        workers=1,
    )


def test_the_study_writes_its_tables_and_goes_on(study: MustStudyConfig) -> None:
    found = run(replace(study, arms=(FULL,)))
    assert [(cell["arm"], cell["seed"]) for cell in found["cells"]] == [(FULL, 0), (FULL, 1)]
    first = study.out / "cells" / "inked" / FULL / "0" / "results.json"
    written = first.stat().st_mtime_ns
    found = run(study)
    assert len(found["cells"]) == 4
    assert first.stat().st_mtime_ns == written
    assert {cell["before"] for cell in found["cells"]} == {found["rows"][0]["before"]["mean"]}
    assert read_json(study.out / "results.json")["rows"] == found["rows"]
    assert "| pseudo-labels alone |" in (study.out / "results.md").read_text()
    with pytest.raises(CapwrightError, match="another plan"):
        run(replace(study, train=5))
