"""Fractions and seeds: which items, what is skipped, what is refused, what is written."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import ClassificationItem, ClassificationSet
from capwright.evaluate import compare
from capwright.evaluate.outcomes import read_outcomes, values
from capwright.evaluate.results import read_results
from capwright.evaluate.transfer import task, tasks
from capwright.evaluate.transfer.augment import ViewSettings
from capwright.evaluate.transfer.classification import ClassificationSettings
from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.depth import DepthSettings
from capwright.evaluate.transfer.loop import STATE, Schedule
from capwright.evaluate.transfer.pixel_views import ViewSettings as PixelViews
from capwright.evaluate.transfer.run import Run
from capwright.evaluate.transfer.segmentation import ReadOut, SegmentationSettings
from capwright.evaluate.transfer.vectors import VectorPlan
from segmentation_sets import squares


@pytest.fixture
def config(toy_folders: dict[str, Path], tiny: dict[str, Any], tmp_path: Path) -> TransferConfig:
    """A linear probe of the toy scenes, on fresh weights."""
    return TransferConfig(
        task="segmentation",
        checkpoint="scratch",
        model=tiny,
        dataset="scenes",
        data=toy_folders["train"].parent,
        train_split="train",
        test_splits=("seen", "unseen"),
        out=tmp_path / "out",
        schedule=Schedule(steps=2, batch=2, learning_rate=1e-2),
        segmentation=SegmentationSettings(
            head="linear",
            views=ViewSettings(side=32, short_side=32, scale=(1.0, 1.0), most_of_one=1.0),
            read_out=ReadOut(short_side=32, window=0),
        ),
        fractions=(0.25, 1.0),
        seeds=(0, 1),
        precision="fp32",
    )


def test_smaller_fractions_lie_within_larger_ones_and_seeds_differ() -> None:
    pictures = squares(40)
    chosen = [set(task.subset(pictures, f, 3)) for f in (0.01, 0.1, 0.5, 1.0)]
    assert [len(numbers) for numbers in chosen] == [1, 4, 20, 40]
    assert all(a < b for a, b in itertools.pairwise(chosen))
    assert task.subset(pictures, 0.5, 3) == task.subset(pictures, 0.5, 3)
    assert task.subset(pictures, 0.5, 3) != task.subset(pictures, 0.5, 4)
    assert set(task.subset(pictures, 0.5, 3, limit=10)) < set(range(10))
    assert task.subset(pictures, 1.0, 5) == tuple(range(40))


def test_classes_take_turns_in_a_fraction() -> None:
    labels = (0,) * 20 + (1,) * 8 + (2,) * 4
    pictures = ClassificationSet(
        name="toys", keys=tuple(map(str, range(32))), read=lambda index: index,  # type: ignore[arg-type, return-value]
        classes=("a", "b", "c"), labels=labels,
    )  # fmt: skip
    counts = [
        np.bincount([labels[n] for n in task.subset(pictures, f, 0)], minlength=3).tolist()
        for f in (3 / 32, 12 / 32, 24 / 32, 1.0)
    ]
    assert counts == [[1, 1, 1], [4, 4, 4], [12, 8, 4], [20, 8, 4]]


def test_every_fraction_and_seed_is_measured_on_every_split(config: TransferConfig) -> None:
    summary = task.run(config)
    assert (summary.measured, summary.skipped) == (4, 0)
    found = sorted(str(f.relative_to(config.out)) for f in config.out.glob("*/*/result.json"))
    assert found == [f"{f}/{s}/result.json" for f in ("0.25", "1") for s in (0, 1)]
    rows = read_results(config.out / "0.25" / "1" / "result.json")
    assert [row.dataset for row in rows] == ["scenes-seen", "scenes-unseen"]
    assert {(row.protocol.name, row.protocol.version) for row in rows} == {
        ("transfer-segmentation", "v1")
    }
    assert (rows[0].seed, rows[0].options["items"], rows[0].options["fraction"]) == (1, 6, 0.25)
    assert (rows[0].options["mode"], rows[0].options["method"]) == ("frozen", "linear")
    assert not list(config.out.glob(f"*/*/{STATE}"))
    content = json.loads((config.out / "results.json").read_text())
    assert [(r["dataset"], r["options"]["fraction"], r["seeds"]) for r in content["summary"]] == [
        ("scenes-seen", 0.25, [0, 1]), ("scenes-unseen", 0.25, [0, 1]),
        ("scenes-seen", 1.0, [0, 1]), ("scenes-unseen", 1.0, [0, 1]),
    ]  # fmt: skip
    assert content["summary"][0]["interval95"]["miou"] is not None


def test_outcomes_give_the_metrics_back(config: TransferConfig) -> None:
    task.run(replace(config, fractions=(1.0,), seeds=(0,)))
    file = config.out / "1" / "0" / "result.json"
    outcomes = read_outcomes(file.with_suffix(".npz"))
    for number, row in enumerate(read_results(file)):
        found = values(outcomes[number].metrics["miou"], np.ones((1, 8)))
        assert found[0] == pytest.approx(row.metrics["miou"])


def test_what_is_done_is_skipped_and_more_can_be_added(
    config: TransferConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    protocol, measure = tasks.TASKS["segmentation"]

    def counted(run: Run) -> Any:
        calls.append((len(run.numbers), run.seed))
        return measure(run)

    monkeypatch.setattr(tasks, "TASKS", {"segmentation": (protocol, counted)})
    task.run(replace(config, fractions=(0.25,), seeds=(0,)))
    again = task.run(replace(config, fractions=(0.25, 0.5), seeds=(0, 1)))
    assert (again.measured, again.skipped) == (3, 1)
    assert calls == [(6, 0), (6, 1), (12, 0), (12, 1)]


def test_seeds_of_another_revision_are_in_the_same_mean(
    config: TransferConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seeds, revision in (((0,), "a"), ((0, 1), "b")):
        monkeypatch.setattr(task, "code_revision", lambda revision=revision: revision)
        plan = replace(config, fractions=(0.25,), seeds=seeds, test_splits=("seen",))
        summary = task.run(plan)
    assert [(row["seeds"], row["code_revision"]) for row in summary.rows] == [([0, 1], "a, b")]


def test_another_plan_is_refused(config: TransferConfig) -> None:
    task.run(replace(config, fractions=(0.25,), seeds=(0,)))
    for changes in (
        {"schedule": replace(config.schedule, steps=3)},
        {"segmentation": replace(config.segmentation, head="knn")},
        {"train_samples": 10},
    ):
        with pytest.raises(CapwrightError, match="was made with another plan"):
            task.run(replace(config, **changes))  # type: ignore[arg-type]
    # of another task, and how a run goes: neither is part of the plan
    same = replace(config, depth=DepthSettings(head="deconv"), save_every=7, fractions=(0.25,))
    assert task.run(replace(same, seeds=(0,))).skipped == 1


def test_a_run_that_was_killed_goes_on_to_the_same_result(
    config: TransferConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(config, fractions=(1.0,), seeds=(0,), save_every=1)
    task.run(replace(one, out=config.out.with_name("whole")))

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(task, "write_results", killed)
        with pytest.raises(KeyboardInterrupt):
            task.run(one)
    assert (one.out / "1" / "0" / STATE).exists()
    task.run(one)
    first, second = (
        read_results(out / "1" / "0" / "result.json")[0].metrics
        for out in (config.out.with_name("whole"), one.out)
    )
    assert first == second


def test_learned_weights_are_kept_where_asked(config: TransferConfig) -> None:
    from safetensors.torch import load_file

    task.run(replace(config, fractions=(1.0,), seeds=(0,), keep_weights=True))
    weights = load_file(config.out / "1" / "0" / "model.safetensors")
    assert any(name.startswith("head.") for name in weights)
    assert any(name.startswith("backbone.") for name in weights)


def test_compare_tells_fractions_apart_and_has_intervals(config: TransferConfig) -> None:
    task.run(config)
    other = replace(config, out=config.out.with_name("other"), checkpoint="scratch")
    task.run(replace(other, segmentation=config.segmentation))
    found = compare.run(compare.CompareConfig(sources=(config.out, other.out), resamples=20))
    rows = {row.task: row for row in found.rows if row.metric == "miou"}
    assert set(rows) == {
        f"segmentation (transfer-segmentation/v1, frozen, linear, {fraction})"
        for fraction in (0.25, 1.0)
    }
    cell = next(iter(rows.values())).cells[found.columns[1]]
    assert cell.seeds == 2
    assert (cell.difference, cell.low, cell.high) == (0, 0, 0)  # the same encoder


def test_the_control_has_its_own_schedule(config: TransferConfig) -> None:
    own = replace(config.schedule, encoder_learning_rate=1e-3)
    scratch = replace(config, scratch_schedule=own)
    assert scratch.schedule_used is own
    assert scratch.mode == "finetuned"
    trained = replace(scratch, checkpoint="runs/a")
    assert trained.schedule_used is config.schedule
    assert trained.mode == "frozen"
    assert scratch.recipe()["schedule"]["encoder_learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "tracking"}, "task 'tracking': allowed are segmentation"),
        ({"fractions": (0.0,)}, "above 0 and at most 1"),
        ({"save_every": 0}, "save_every is 0 steps: give at least 1"),
        ({"fractions": ()}, "give at least one"),
        ({"seeds": ()}, "give at least one of each"),
        ({"test_splits": ()}, "give at least one of each"),
    ],
)
def test_plans_that_cannot_be_are_refused(
    config: TransferConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CapwrightError, match=message):
        replace(config, **changes)


def test_no_encoder_and_a_set_of_another_kind_are_refused(config: TransferConfig) -> None:
    with pytest.raises(CapwrightError, match="no encoder: give --checkpoint"):
        task.run(replace(config, checkpoint=""))
    with pytest.raises(CapwrightError, match="scenes is not for classification: take a set with"):
        task.run(replace(config, task="classification"))
    assert not config.out.exists()


def test_depth_and_normals_of_the_scenes(config: TransferConfig) -> None:
    for name, changes in (
        ("depth", {"depth": DepthSettings(head="linear", bins=8, views=PixelViews(short_side=32))}),
        ("normals", {}),
    ):
        summary = task.run(
            replace(
                config,
                task=name,
                out=config.out.with_name(name),
                fractions=(0.5,),
                **changes,  # type: ignore[arg-type]
            )
        )
        metric = {"depth": "rmse", "normals": "mean_degrees"}[name]
        assert all(row["metrics"][metric] > 0 for row in summary.rows)


@pytest.fixture
def stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set for classification in place of the scenes."""

    def read(index: int) -> ClassificationItem:
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[(index // 2) % 4 :: 8] = 255
        image = Image.fromarray(pixels if index % 2 else pixels.transpose(1, 0, 2).copy())
        return ClassificationItem(key=str(index), image=image, label=index % 2)

    def load(config: TransferConfig, split: str) -> ClassificationSet:
        return ClassificationSet(
            name="stripes", keys=tuple(map(str, range(8))), read=read,
            classes=("across", "along"), labels=(0, 1) * 4,
        )  # fmt: skip

    monkeypatch.setattr(task, "open_set", load)


@pytest.mark.parametrize("method", ["linear", "knn", "finetune"])
@pytest.mark.usefixtures("stripes")
def test_classification_of_pictures(config: TransferConfig, method: Any) -> None:
    settings = ClassificationSettings(method=method, vectors=VectorPlan(image_size=32))
    schedule = replace(config.schedule, encoder_learning_rate=1e-3)
    plan = replace(
        config, task="classification", classification=settings, schedule=schedule,
        fractions=(0.5, 1.0), seeds=(0,),
    )  # fmt: skip
    summary = task.run(plan)
    assert {row["options"]["mode"] for row in summary.rows} == {
        "finetuned" if method == "finetune" else "frozen"
    }
    if method != "finetune":
        assert summary.rows[-1]["metrics"]["acc1"] == 1


def test_types_of_tasks_agree() -> None:
    from capwright.evaluate.transfer.config import TASKS

    measures: dict[str, Callable[..., Any]] = {name: m for name, (_, m) in tasks.TASKS.items()}
    assert set(measures) == set(TASKS) == set(task.KINDS)


def test_splits_with_other_classes_are_refused(
    config: TransferConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_set = task.open_set

    def opened(config: TransferConfig, split: str) -> Any:
        found = open_set(config, split)
        return replace(found, classes=("ghost", *found.classes[1:])) if split == "seen" else found

    monkeypatch.setattr(task, "open_set", opened)
    with pytest.raises(CapwrightError, match=r"split 3, first '\w+' and 'ghost': both need"):
        task.run(config)
