import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.evaluate.dense_probe import DenseProbeConfig, headline, run
from capwright.evaluate.dense_training import ProbeRecipe, Schedule
from capwright.evaluate.results import Protocol, Result, read_results

FAST = ProbeRecipe(
    train_samples=24,
    test_samples=8,
    label_size=32,
    loss_size=16,
    hidden=8,
    views=1,
    frozen=Schedule(samples=24, batch=12, learning_rate=1e-2),
    finetuned=Schedule(samples=24, batch=12, learning_rate=1e-2, encoder_learning_rate=1e-3),
    from_scratch=Schedule(samples=24, batch=12, learning_rate=1e-2, encoder_learning_rate=1e-3),
)


@pytest.fixture
def config(tmp_path: Path, toy_folders, tiny) -> DenseProbeConfig:
    return DenseProbeConfig(
        checkpoint=None,
        model=tiny,
        train=toy_folders["train"],
        tests={split: toy_folders[split] for split in ("seen", "unseen")},
        out=tmp_path / "arm" / "results.json",
        seeds=(0, 1),
        finetuned_seeds=(0,),
        kept_predictions=3,
        recipe=FAST,
    )


def test_a_run_writes_a_row_per_split_task_mode_and_seed(config: DenseProbeConfig) -> None:
    summary = run(config)
    rows = read_results(config.out)
    found = sorted((r.options["mode"], r.dataset, r.task, r.seed) for r in rows)
    wanted = [
        (mode, f"scenes-{split}", task, seed)
        for mode, seeds in (("finetuned", (0,)), ("frozen", (0, 1)))
        for split in ("seen", "unseen")
        for task in ("depth", "segmentation")
        for seed in seeds
    ]
    assert found == wanted
    assert {row.protocol for row in rows} == {FAST.protocol}
    assert set(summary.headline) == {
        "miou", "rmse", "absrel_objects", "miou_unseen", "rmse_unseen"
    }  # fmt: skip
    frozen = [
        row.metrics["miou"]
        for row in rows
        if (row.options["mode"], row.dataset) == ("frozen", "scenes-seen") and "miou" in row.metrics
    ]
    assert summary.headline["miou"] == pytest.approx(np.mean(frozen))


def test_predictions_of_the_headline_mode_are_kept_for_the_report(
    config: DenseProbeConfig,
) -> None:
    run(replace(config, modes=("frozen",), seeds=(0,)))
    folder = config.out.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "predictions_seen.npz",
        "predictions_unseen.npz",
        "results.json",
    ]
    with np.load(folder / "predictions_seen.npz") as kept:
        shapes = {name: kept[name].shape for name in kept.files}
        assert kept["depth_pred"].min() > 0
    assert shapes == {
        "images": (3, 32, 32, 3),
        "seg_true": (3, 32, 32),
        "depth_true": (3, 32, 32),
        "seg_pred": (3, 32, 32),
        "depth_pred": (3, 32, 32),
        "classes": (3,),
        "keys": (3,),
    }


def test_the_headline_averages_seeds_and_keeps_modes_apart() -> None:
    def row(mode: str, split: str, seed: int, **metrics: float) -> Result:
        return Result(
            dataset=f"scenes-{split}",
            model="nano",
            pretrained="random",
            task="segmentation" if "miou" in metrics else "depth",
            metrics=metrics,
            protocol=Protocol(name="dense-probe", version="v1"),
            seed=seed,
            samples_seen=0,
            code_revision="0",
            options={"mode": mode, "split": split},
        )

    rows = [
        row("frozen", "seen", 0, miou=0.2),
        row("frozen", "seen", 1, miou=0.4),
        row("finetuned", "seen", 0, miou=0.9),
        row("frozen", "seen", 0, rmse=2.0, absrel_objects=0.5),
        row("frozen", "unseen", 0, miou=0.1),
    ]
    assert headline(rows, "frozen") == pytest.approx(
        {"miou": 0.3, "rmse": 2.0, "absrel_objects": 0.5, "miou_unseen": 0.1}
    )
    assert headline(rows, "finetuned") == {"miou": 0.9}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modes": ("linear",)}, "allowed are frozen, finetuned, and the headline must be one"),
        ({"modes": ("finetuned",)}, "with the headline 'frozen': allowed are frozen, finetuned"),
        ({"tests": {}}, "no test scenes: pass at least one split, such as seen=SCENES"),
        ({"seeds": ()}, "no seeds: pass at least one, such as 0"),
    ],
)
def test_a_wrong_plan_is_refused_with_what_is_allowed(
    config: DenseProbeConfig, change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(CapwrightError) as raised:
        replace(config, **change)  # type: ignore[arg-type]
    assert sentence in str(raised.value)


def test_too_few_scenes_are_counted_in_the_error(config: DenseProbeConfig) -> None:
    with pytest.raises(CapwrightError, match="train has 24 scenes, but 25 were asked for"):
        run(replace(config, recipe=replace(FAST, train_samples=25)))


def test_the_command_prints_the_summary_and_takes_settings(toy_folders, tmp_path: Path) -> None:
    settings = [
        "recipe.train_samples=8",
        "recipe.test_samples=2",
        "recipe.views=1",
        "recipe.frozen.batch=4",
        "recipe.frozen.samples=8",
    ]
    arguments = [
        "evaluate", "dense", "scratch", "--mode", "frozen", "--train", str(toy_folders["train"]),
        "--test", f"seen={toy_folders['seen']}", "--out", str(tmp_path / "r.json"),
        *(part for setting in settings for part in ("--set", setting)),
    ]  # fmt: skip
    outcome = CliRunner().invoke(group, arguments)
    assert outcome.exit_code == 0, outcome.output
    printed = json.loads(outcome.stdout)
    assert printed["headline"].keys() == {"miou", "rmse", "absrel_objects"}
    assert {row.pretrained for row in read_results(tmp_path / "r.json")} == {"random"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["dense", "scratch", "--train", "x", "--test", "seen", "--out", "r.json"],
            "--test 'seen' is not a new SPLIT=SCENES: write it as seen=FOLDER, each split once",
        ),
        (
            ["retrieval", "nowhere", "--data", "x", "--out", "r.json"],
            "no checkpoint at 'nowhere'",
        ),
        (
            ["classification", "scratch", "--data", "nowhere", "--out", "r.json"],
            "no shards in 'nowhere'",
        ),
    ],
)
def test_a_users_fault_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(group, ["evaluate", *arguments])
    assert outcome.exit_code == 2
    assert sentence in outcome.stderr
