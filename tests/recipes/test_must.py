"""The recipes of MUST load, and the study's table says what its cells say."""

from pathlib import Path

import pytest

from capwright.adapt.must import Config, Weights
from capwright.core.errors import CapwrightError
from capwright.recipes import must_scenes, must_sets
from capwright.recipes.load import load_recipe


@pytest.mark.parametrize("name", must_sets.TABLE)
def test_every_row_is_a_recipe(name: str) -> None:
    config = load_recipe(f"must_{name}")
    assert isinstance(config, Config)
    assert config == must_sets.config_of(name)
    assert config.out == Path(f"runs/must_{name}")


def test_a_row_that_is_none_names_the_others() -> None:
    with pytest.raises(CapwrightError, match=r"no row 'cars' .* known are imagenet, imagenet_l14"):
        must_sets.config_of("cars")


def test_gtsrb_has_the_settings_of_the_sheet() -> None:
    config = load_recipe("must_gtsrb")
    assert config.weights == Weights(self_training=1, fairness=1, masked_image=1, alignment=0.5)
    assert (config.mask_patch, config.mask_ratio, config.threshold) == (32, 0.5, 0.3)
    assert (config.learning_rate, config.epochs, config.batch) == (2e-5, 20, 1024)
    assert (config.momentum, config.momentum_steps) == ((0.99, 0.9998), 500)


def cell(arm: str, seed: int, last: float) -> dict[str, object]:
    return {"style": "drawn", "arm": arm, "seed": seed, "before": 0.4, "last": last, "best": 0.75}


def test_the_table_has_means_and_paired_differences() -> None:
    cells = [cell("MUST", 0, 0.7), cell("MUST", 1, 0.5)]
    cells += [cell("without fairness", 0, 0.6), cell("without fairness", 1, 0.4)]
    rows = must_scenes.rows_of(cells)
    assert rows[0]["last"]["mean"] == pytest.approx(0.6)
    assert rows[1]["above_full"]["mean"] == pytest.approx(-0.1)
    assert rows[1]["above_full"]["interval95"] == pytest.approx(0, abs=1e-9)
    text = must_scenes.markdown(rows)
    assert "| MUST | 40.0 | 60.0 ± 127.1 |  | 75.0 ± 0.0 |" in text
    assert "| without fairness | 40.0 | 50.0 ± 127.1 | -10.0 ± 0.0 | 75.0 ± 0.0 |" in text


def test_cells_differ_in_weights_and_seed_alone(tmp_path: Path) -> None:
    study = must_scenes.MustStudyConfig(out=tmp_path, checkpoint="clip")
    full, alone = study.cell("drawn", "MUST", 1), study.cell("drawn", "pseudo-labels alone", 1)
    assert full.out == tmp_path / "cells" / "drawn" / "MUST" / "1"
    assert alone.out.parts[-2] == "pseudo-labels-alone"
    assert full.weights == Weights()
    assert alone.weights == Weights(fairness=0, masked_image=0, alignment=0)
    assert (full.seed, full.checkpoint, full.data) == (1, "clip", tmp_path / "sets" / "drawn")


def test_an_unknown_arm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="arm 'all' is unknown: allowed are MUST, pseudo"):
        must_scenes.MustStudyConfig(out=tmp_path, arms=("all",))
