"""Evaluators of a pretraining run: from texts, on a real checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from capwright.core.errors import CapwrightError
from capwright.core.files import write_json
from capwright.evaluate.during_training import evaluators
from capwright.models import towers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("retreival=x", "evaluator 'retreival=x' is not understood: write retrieval=WORK"),
        ("dense=one", "evaluator 'dense=one' is not understood"),
        ("retrieval=/nowhere", "evaluator 'retrieval=/nowhere': there is no folder /nowhere"),
    ],
)
def test_what_is_not_understood_is_said(text: str, message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        evaluators([text])


def test_each_measures_a_checkpoint_and_keeps_its_results(
    toy_folders: dict[str, Path], tiny: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoints" / "samples_000000001"
    config = towers.model_config(tiny)
    content = {"model_cfg": config, "preprocess_cfg": towers.preprocess_config(config)}
    write_json(folder / towers.CONFIG_FILE, content)
    save_file(towers.build(tiny).state_dict(), folder / towers.WEIGHTS_FILE)
    seen = toy_folders["seen"]
    found = evaluators([f"retrieval={seen}", f"classification={seen}"])
    metrics = {name: evaluator(folder) for name, evaluator in found.items()}
    assert 0 <= metrics["retrieval"]["image_retrieval_recall@1"] <= 1
    assert set(metrics["classification"]) == {"acc1"}
    out = tmp_path / "run" / "evaluations" / "samples_000000001"
    assert json.loads((out / "retrieval.json").read_text())
    assert json.loads((out / "classification.json").read_text())
