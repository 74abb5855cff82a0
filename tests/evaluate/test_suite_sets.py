"""The suite on tiny sets in their standard layouts, and the comparison of two models on them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capwright.core.errors import CapwrightError
from capwright.evaluate.compare import CompareConfig
from capwright.evaluate.compare import run as compare
from capwright.evaluate.outcomes import read_outcomes, values
from capwright.evaluate.results import read_results
from capwright.evaluate.suite import SuiteConfig, run
from capwright.evaluate.suite_tasks import find_tasks
from set_files import write_label, write_picture

SIZES = ((40, 32), (40, 32), (32, 48))
METHODS = ("clip", "sclip", "contrast")
SEGMENTED = ("cityscapes", "pascal-voc20", "pascal-voc21")
TASKS = (
    "retrieval-coco-captions", "retrieval-flickr30k",
    *(f"training-free-{name}" for name in SEGMENTED), "zero-shot-imagenet",
)  # fmt: skip
CONVOLUTIONS = "capwright_mci_nano_s8"


def write_imagenet(folder: Path) -> None:
    names = ("cat", "dog", "fox", "hen", "owl", "pig")
    for number, name in enumerate(names):
        write_picture(folder / "val" / name / "0.jpg", SIZES[number % 3], colour=40 * number)


def write_captions(folder: Path, json_name: str, pictures: str) -> None:
    entries = []
    for number, size in enumerate(SIZES):
        name = f"{number:06d}.jpg"
        write_picture(folder / pictures / name, size, colour=80 * number)
        sentences = [{"raw": f"thing {number} seen {way} times"} for way in range(5)]
        entry = {"filename": name, "split": "test", "sentences": sentences}
        entries.append(entry | ({"filepath": "val2014"} if "val2014" in pictures else {}))
    folder.mkdir(exist_ok=True)
    (folder / json_name).write_text(json.dumps({"images": entries}))


def write_cityscapes(folder: Path) -> None:
    for number, size in enumerate(SIZES):
        key = f"val/ulm/ulm_{number}"
        write_picture(folder / f"leftImg8bit/{key}_leftImg8bit.png", size, colour=80 * number)
        label = folder / f"gtFine/{key}_gtFine_labelIds.png"
        write_label(label, 0, 7, 26, 33, shape=size[::-1])


def write_voc(folder: Path) -> None:
    base = folder / "VOCdevkit" / "VOC2012"
    for number, size in enumerate(SIZES):
        write_picture(base / f"JPEGImages/{number}.jpg", size, colour=80 * number)
        write_label(base / f"SegmentationClass/{number}.png", 0, 4, 15, 255, shape=size[::-1])
    names = base / "ImageSets/Segmentation/val.txt"
    names.parent.mkdir(parents=True)
    names.write_text("0\n1\n2\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_imagenet(folder / "imagenet")
    write_captions(folder / "flickr30k", "dataset_flickr30k.json", "flickr30k-images")
    write_captions(folder / "coco-captions", "dataset_coco.json", "images/val2014")
    write_cityscapes(folder / "cityscapes")
    write_voc(folder / "pascal-voc")
    return folder


@pytest.fixture(scope="module")
def done(root: Path, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models on all sets, one after the other, into one folder."""
    out = tmp_path_factory.mktemp("results")
    for seed in (0, 1):
        config = config_of(root, out / str(seed), tiny, seed=seed)
        assert run(config).measured == len(TASKS)
    return out


def config_of(root: Path, out: Path, model: Any, **changes: Any) -> SuiteConfig:
    return SuiteConfig(
        models=("scratch",), data=root, out=out, model=model, methods=METHODS, device="cpu",
        **changes,
    )  # fmt: skip


def test_every_set_has_a_file_with_what_each_picture_contributed(done: Path) -> None:
    folder = done / "0" / "scratch"
    assert sorted(path.stem for path in folder.glob("*.json")) == sorted(TASKS)
    for task in TASKS:
        rows = read_results(folder / f"{task}.json")
        outcomes = read_outcomes(folder / f"{task}.npz")
        assert len(rows) == len(outcomes) == (2 * len(METHODS) if "free" in task else 1)
        for number, row in enumerate(rows):
            assert task.endswith(row.dataset)
            kept = outcomes[number].metrics
            for metric, outcome in kept.items():
                value = values(outcome, np.ones((1, row.options["pictures"])))[0]
                assert value == pytest.approx(row.metrics[metric])


def test_two_models_are_compared_on_every_set(done: Path) -> None:
    summary = compare(CompareConfig(sources=(done / "0", done / "1"), resamples=50))
    assert {row.dataset for row in summary.rows} == {
        "imagenet", "flickr30k", "coco-captions", *SEGMENTED
    }  # fmt: skip
    names = {row.task for row in summary.rows if row.dataset == "cityscapes"}
    assert names == {
        f"training_free_segmentation ({protocol}/v1, {method})"
        for protocol in ("sclip", "plain")
        for method in METHODS
    }
    for row in summary.rows:
        first, other = row.cells.values()
        assert first.difference is None
        assert other.difference == pytest.approx(other.mean - first.mean)
        assert other.low <= other.high


def test_towers_of_two_sizes_share_the_rows(
    done: Path, root: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    larger = {**tiny, "vision_cfg": {**tiny["vision_cfg"], "image_size": 48}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cityscapes").symlink_to(root / "cityscapes")
    run(config_of(tmp_path / "data", tmp_path / "out", larger, suite="dense"))
    one = done / "0" / "scratch" / "training-free-cityscapes.json"
    summary = compare(CompareConfig(sources=(one, tmp_path / "out"), resamples=20))
    assert len(summary.rows) == 2 * len(METHODS) * 3  # mIoU, mAcc, aAcc
    assert all(len(row.cells) == 2 for row in summary.rows)


def test_the_dense_suite_is_the_sets_with_classes_at_every_pixel(
    root: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(root, tmp_path, tiny, suite="dense", samples=1)
    found = run(config).metrics["scratch"]
    assert sorted(found) == [f"training-free-{name}" for name in SEGMENTED]
    with pytest.raises(CapwrightError, match="was made with another plan"):
        run(config_of(root, tmp_path, tiny, suite="dense", samples=2))


def test_a_tower_that_cannot_be_opened_up_is_left_out_and_said_so(
    root: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    vision = {**tiny["vision_cfg"], "timm_model_name": CONVOLUTIONS}
    summary = run(config_of(root, tmp_path, {**tiny, "vision_cfg": vision}))
    assert summary.measured == 3
    assert sorted(summary.unfit["scratch"]) == [f"training-free-{name}" for name in SEGMENTED]
    assert "cannot be opened up" in summary.unfit["scratch"]["training-free-cityscapes"]
    assert not list(tmp_path.rglob("training-free*"))


def test_folders_are_called_as_the_data_sets_are(tmp_path: Path) -> None:
    for name in ("ade20k", "coco-stuff", "pascal-context", "pascal-voc", "pascal-voc21"):
        (tmp_path / name).mkdir()
    config = SuiteConfig(models=("scratch",), data=tmp_path, out=tmp_path, suite="dense")
    found = {task.name: task.plan["folder"].name for task in find_tasks(config)}
    assert found == {
        "training-free-ade20k": "ade20k",
        "training-free-coco-stuff": "coco-stuff",
        "training-free-pascal-context59": "pascal-context",
        "training-free-pascal-context60": "pascal-context",
        "training-free-pascal-voc20": "pascal-voc",
        "training-free-pascal-voc21": "pascal-voc21",
    }
    assert find_tasks(replace(config, suite="zero-shot")) == []


def test_an_unknown_method_is_named(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="clip, maskclip"):
        SuiteConfig(models=("a",), data=tmp_path, out=tmp_path, methods=("magic",))
