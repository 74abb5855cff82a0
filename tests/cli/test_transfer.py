"""The command `capwright transfer`, by its command line."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from capwright.cli import group
from capwright.pretrain.signals import EXIT_CODE, Stopped
from toy_scenes import write_scenes

RECIPE = """
from pathlib import Path

from capwright.evaluate.transfer.augment import ViewSettings
from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.segmentation import ReadOut, SegmentationSettings


def config():
    return TransferConfig(
        task="segmentation", dataset="scenes", data=Path("nowhere"), train_split="labelled",
        test_splits=("seen",), out=Path("nowhere"), precision="fp32",
        schedule=Schedule(steps=2, batch=2, learning_rate=0.01),
        segmentation=SegmentationSettings(
            head="linear", views=ViewSettings(side=64, short_side=64),
            read_out=ReadOut(short_side=64, window=0),
        ),
    )
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "labelled")
    write_scenes(root / "seen")
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    return str(path)


def transfer(*arguments: Any) -> Result:
    return CliRunner().invoke(group, ["transfer", *map(str, arguments)])


def test_a_curve_is_learned_drawn_and_compared(data: Path, recipe: str, tmp_path: Path) -> None:
    common = (
        "segmentation", recipe, "--checkpoint", "scratch", "--data", data, "--fractions", "0.25,1",
        "--seeds", 2,
    )  # fmt: skip
    done = transfer(*common, "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "miou, scenes-seen"
    assert [line.split()[:2] for line in done.stdout.splitlines()[2:]] == [
        ["0.25", "6"],
        ["1", "24"],
    ]
    assert (tmp_path / "a" / "curve.svg").exists()
    other = transfer(*common, "--out", tmp_path / "b", "--set", "segmentation.head=knn", "--json")
    assert json.loads(other.stdout)["measured"] == 4
    both = transfer("curve", tmp_path / "a", tmp_path / "b", "--to", tmp_path / "both.svg")
    assert both.exit_code == 0, both.output
    assert "times fewer items than the first" in both.stdout
    assert (tmp_path / "both.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["depth", "RECIPE"], "is of the task 'segmentation', not of 'depth'"),
        (["depth", "scenes_clip"], "is of no transfer, not of 'depth'"),
        (["segmentation", "scenes_segmentatoin"], "did you mean 'scenes_segmentation'?"),
        (["segmentation", "RECIPE", "--set", "segmentation.head=unet"], "has a wrong value"),
        (["segmentation", "RECIPE", "--data", "DATA"], "no encoder: give --checkpoint"),
        (["segmentation", "RECIPE", "--fractions", "2"], "above 0 and at most 1"),
        (["segmentation", "RECIPE", "--fractions", "a"], "expected numbers such as"),
    ],
)
def test_the_users_faults(arguments: list[str], message: str, recipe: str, data: Path) -> None:
    found = transfer(*({"RECIPE": recipe, "DATA": data}.get(a, a) for a in arguments))
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())


def test_sigterm_has_its_exit_code(
    recipe: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capwright.evaluate.transfer import task

    def stopped(config: Any) -> None:
        raise Stopped(12, "out/1/0/state.pt")

    monkeypatch.setattr(task, "run", stopped)
    found = transfer("segmentation", recipe, "--checkpoint", "scratch", "--data", data)
    assert found.exit_code == EXIT_CODE == 128 + signal.SIGTERM
    assert "the same command goes on from it" in found.output
