"""Depth, normals and classification as whole runs: fractions, seeds, files, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import toy_scenes
from capwright.core.errors import CapwrightError
from capwright.evaluate.outcomes import read_outcomes, values
from capwright.evaluate.results import read_results
from capwright.evaluate.transfer import task
from capwright.evaluate.transfer.classification import ClassificationSettings
from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.depth import DepthSettings
from capwright.evaluate.transfer.finetune_classifier import FineTuning
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.normals import NormalsSettings
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings
from set_files import write_picture

TINY_VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}
SCHEDULE = Schedule(steps=2, batch=4, learning_rate=1e-3, encoder_learning_rate=1e-4)
VIEWS, READ_OUT = ViewSettings(short_side=32), ReadOut(batch=8)
COLOURS = {"ants": 20, "bees": 120, "cats": 220}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    for split in ("probe", "seen"):
        toy_scenes.write_scenes(root / split)
    return root


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    root = tmp_path / "colours"
    for split, each in (("train", 4), ("val", 2)):
        for name, colour in COLOURS.items():
            for number in range(each):
                place = root / split / name / f"{number}.png"
                write_picture(place, (40, 36), colour + number)
    return root


def plan(task_name: str, data: Path, out: Path, **changes: Any) -> TransferConfig:
    whole = task_name == "classification"
    made = TransferConfig(
        task=task_name,  # type: ignore[arg-type]
        checkpoint="scratch",
        model=TINY_VIT,
        dataset="imagenet" if whole else "scenes",
        data=data,
        train_split="train" if whole else "probe",
        test_splits=("val",) if whole else ("seen",),
        out=out,
        schedule=SCHEDULE,
        depth=DepthSettings(head="deconv", width=8, views=VIEWS, read_out=READ_OUT),
        normals=NormalsSettings(views=VIEWS, read_out=READ_OUT),
        precision="fp32",
        device="cpu",
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("name", "metric", "protocol"),
    [("depth", "rmse", "transfer-depth"), ("normals", "mean_degrees", "transfer-normals")],
)
def test_fractions_and_seeds_of_values_at_pixels(
    name: str, metric: str, protocol: str, scenes: Path, tmp_path: Path
) -> None:
    config = plan(name, scenes, tmp_path / "out", fractions=(0.25, 1.0), seeds=(0, 1))
    summary = task.run(config)
    assert summary.measured == 4
    assert [row["options"]["items"] for row in summary.rows] == [6, 24]
    for fraction in ("0.25", "1"):
        file = tmp_path / "out" / fraction / "1" / "result.json"
        (result,) = read_results(file)
        assert (result.protocol.name, result.protocol.version) == (protocol, "v1")
        assert (result.task, result.options["mode"]) == (name, "finetuned")
        outcomes = read_outcomes(file.with_suffix(".npz"))[0]
        found = values(outcomes.metrics[metric], np.ones((1, 24)))[0]
        assert found == pytest.approx(result.metrics[metric])
    assert task.run(config).skipped == 4


@pytest.mark.parametrize("head", ["glp", "deconv", "linear"])
def test_every_head_of_depth_runs(head: Any, scenes: Path, tmp_path: Path) -> None:
    settings = DepthSettings(
        head=head, depths="spread", width=8, pyramid_width=16, views=VIEWS, read_out=READ_OUT
    )
    frozen = replace(SCHEDULE, encoder_learning_rate=0.0)
    config = plan("depth", scenes, tmp_path, depth=settings, schedule=frozen, train_samples=8)
    (row,) = task.run(config).rows
    assert (row["options"]["method"], row["options"]["mode"]) == (head, "frozen")
    assert row["metrics"]["rmse"] > 0


@pytest.mark.parametrize("method", ["linear", "knn", "finetune"])
def test_every_way_to_classify_runs(method: Any, colours: Path, tmp_path: Path) -> None:
    settings = ClassificationSettings(
        method=method, neighbours=3, fine_tuning=FineTuning(crop_area=(0.5, 1.0))
    )
    config = plan("classification", colours, tmp_path / "out", classification=settings)
    (row,) = task.run(config).rows
    assert set(row["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
    assert row["metrics"]["acc5"] is None
    assert row["protocol"] == {"name": "linear-probe", "version": "v1"}
    assert row["options"]["mode"] == ("finetuned" if method == "finetune" else "frozen")
    if method != "finetune":  # three colours, told apart by any encoder
        assert row["metrics"]["acc1"] == 1


def test_vectors_are_shared_by_fractions_and_kept_apart_for_fresh_weights(
    colours: Path, tmp_path: Path
) -> None:
    settings = ClassificationSettings(method="knn", neighbours=1)
    config = plan(
        "classification", colours, tmp_path / "out",
        classification=settings, fractions=(0.5, 1.0), seeds=(0, 1),
    )  # fmt: skip
    task.run(config)
    assert len(list((tmp_path / "out" / "vectors").iterdir())) == 4  # two splits, two encoders


def test_a_fraction_that_leaves_one_picture_is_said_to_be_too_small(
    colours: Path, tmp_path: Path
) -> None:
    config = plan("classification", colours, tmp_path / "out", fractions=(0.001,))
    with pytest.raises(CapwrightError, match="a linear probe of 1 pictures of 1 class"):
        task.run(config)


def test_a_class_without_pictures_is_refused_before_anything_is_learned(
    colours: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        (colours / split / "dogs").mkdir()
    for method in ("linear", "knn", "finetune"):
        settings = ClassificationSettings(method=method)  # type: ignore[arg-type]
        config = plan("classification", colours, tmp_path / method, classification=settings)
        with pytest.raises(CapwrightError, match="1 classes of imagenet have no training pictures"):
            task.run(config)


def test_other_classes_in_the_test_split_are_refused(colours: Path, tmp_path: Path) -> None:
    (colours / "val" / "cats").rename(colours / "val" / "dogs")
    with pytest.raises(CapwrightError, match="first 'cats' and 'dogs'"):
        task.run(plan("classification", colours, tmp_path / "out"))


def test_a_set_without_depths_is_refused(colours: Path, tmp_path: Path) -> None:
    config = plan("depth", colours, tmp_path / "out", dataset="imagenet", train_split="train",
                  test_splits=("val",))  # fmt: skip
    with pytest.raises(CapwrightError, match="imagenet is not for depth: take a set with"):
        task.run(config)


def test_a_training_set_without_known_depth_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "nyu2"
    rgb = Image.new("RGB", (48, 40), (90, 20, 200))
    for split in ("train", "test"):
        for number in range(3):
            place = root / "official_splits" / split / "kitchen"
            place.mkdir(parents=True, exist_ok=True)
            rgb.save(place / f"rgb_{number:05d}.jpg")
            depth_HW = np.zeros((40, 48), np.uint16)
            Image.fromarray(depth_HW).save(place / f"sync_depth_{number:05d}.png")
    config = plan("depth", root, tmp_path / "out", dataset="nyuv2", train_split="train",
                  test_splits=("test",))  # fmt: skip
    with pytest.raises(CapwrightError, match="none of 3 pictures of nyuv2 that were looked at"):
        task.run(config)
