"""`capwright adapt`: methods and recipes by name, folders, seeds, error texts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from capwright.adapt import mirror_depth, must
from capwright.cli import adapt, group
from capwright.evaluate.results import Protocol, read_results, write_results
from capwright.evaluate.results import Result as Numbers
from capwright.pretrain import signals


@dataclass(frozen=True, kw_only=True)
class Done:
    out: Path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that reached a method, which does nothing but write a number."""
    configs: list[Any] = []

    def run(config: Any) -> Done:
        configs.append(config)
        if isinstance(config, must.Config):
            result = Numbers(
                dataset="d", model="m", pretrained="p", task="t",
                metrics={"acc1": config.seed / 10},
                protocol=Protocol(name="must", version="v1"), seed=config.seed, samples_seen=None,
                code_revision="0",
            )  # fmt: skip
            write_results(config.out / "results.json", [result])
        return Done(out=config.out)

    monkeypatch.setattr(mirror_depth, "run", run)
    monkeypatch.setattr(must, "run", run)
    return configs


def call(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["adapt", *arguments])


def test_the_methods_are_the_folders() -> None:
    assert adapt.names() == ["mirror-depth", "must", "zsseg"]


def test_a_recipe_of_the_method_with_folders_seeds_and_settings(seen: list[Any]) -> None:
    result = call(
        "mirror-depth", "--recipe", "scenes", "--checkpoint", "runs/a", "--data", "d",
        "--test-data", "e", "--out", "o", "--seeds", "2", "--set", "schedule.steps=3000",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"out": "o"}
    (config,) = seen
    assert (config.checkpoint, config.data, config.test_data) == ("runs/a", Path("d"), Path("e"))
    assert (config.seeds, config.schedule.steps) == ((0, 1), 3000)
    assert config.dataset == "scenes"


def test_without_options_the_recipe_is_as_it_is(seen: list[Any]) -> None:
    from capwright.recipes import mirror_depth_nyuv2, mirror_depth_scenes

    assert call("mirror-depth").exit_code == 0
    assert call("mirror_depth", "--recipe", "mirror_depth_nyuv2").exit_code == 0
    assert seen == [mirror_depth_scenes.config(), mirror_depth_nyuv2.config()]


def recipe(folder: Path, config: str) -> str:
    path = folder / "mine.py"
    path.write_text(f"def config():\n    {config}\n")
    return str(path)


MUST = "from capwright.adapt.must import Config; return Config(seed=7)"


def test_a_method_with_one_seed_runs_in_a_folder_each(seen: list[Any], tmp_path: Path) -> None:
    mine, out = recipe(tmp_path, MUST), tmp_path / "out"
    assert call("must", "--recipe", mine, "--out", str(out), "--seeds", "3").exit_code == 0
    assert [(config.seed, config.out) for config in seen] == [(n, out / str(n)) for n in range(3)]
    assert [result.seed for result in read_results(out / "results.json")] == [0, 1, 2]
    (row,) = json.loads((out / "summary.json").read_text())
    assert row["metrics"]["acc1"] == pytest.approx(0.1) and row["seeds"] == [0, 1, 2]


def test_what_is_refused(seen: list[Any], tmp_path: Path) -> None:
    faults = {
        ("mirrors",): "no method is called 'mirrors': capwright adapt knows mirror-depth, must",
        ("mirror-depth", "--recipe", "scenes_clip"): "recipe 'scenes_clip' is not for mirror-depth",
        ("mirror-depth", "--recipe", "sceness"): "recipe 'sceness' is unknown",
        ("must", "--recipe", recipe(tmp_path, MUST), "--test-data", "d"): "must has no --test-data",
        ("mirror-depth", "--set", "token=3"): "unknown key 'token': did you mean 'tokens'?",
    }
    for arguments, text in faults.items():
        result = call(*arguments)
        assert (result.exit_code, text in result.stderr) == (2, True), result.output
    assert seen == []


def test_sigterm_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(config: Any) -> None:
        raise signals.Stopped(12, "o/state.pt")

    monkeypatch.setattr(mirror_depth, "run", stopped)
    result = call("mirror-depth")
    assert result.exit_code == signals.EXIT_CODE
    assert "o/state.pt is written" in result.stderr
