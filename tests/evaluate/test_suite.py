"""The suite on several models: what it writes, skips and refuses; the table of what it wrote."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.core.files import write_json
from capwright.evaluate import suite, suite_model
from capwright.evaluate.compare import CompareConfig
from capwright.evaluate.compare import run as compare
from capwright.evaluate.dense_training import ProbeRecipe, Schedule
from capwright.evaluate.outcomes import read_outcomes, values
from capwright.evaluate.results import read_results
from capwright.evaluate.suite import SuiteConfig, run
from capwright.evaluate.suite_model import label_of
from capwright.evaluate.suite_tasks import find_tasks
from capwright.models import towers

FAST = ProbeRecipe(
    train_samples=24,
    test_samples=8,
    label_size=32,
    loss_size=16,
    hidden=8,
    views=1,
    frozen=Schedule(samples=24, batch=12, learning_rate=1e-2),
)
CLASSES = ("red bus", "two dogs", "wooden table", "jug of water", "old man")


def write_tar(path: Path, rows: list[dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True)
    (path.parent / "nshards.txt").write_text("1")
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            for suffix, content in row.items():
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def pictures(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        stream = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8))
        small.resize((40, 48)).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classification and a retrieval set of the same pictures, in CLIP_benchmark's form."""
    folder, images = tmp_path_factory.mktemp("root"), pictures(20)
    labelled = [{"png": p, "cls": str(i % 5).encode()} for i, p in enumerate(images)]
    write_tar(folder / "things" / "test" / "0.tar", labelled)
    (folder / "things" / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "things" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}")
    captioned = [
        {"png": p, "txt": f"{CLASSES[i % 5]} number {i}\nand a tree {i}".encode()}
        for i, p in enumerate(images)
    ]
    write_tar(folder / "webdataset" / "said" / "test" / "0.tar", captioned)
    (folder / "webdataset" / "said" / "dataset_type.txt").write_text("retrieval")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = towers.model_config(tiny)
    torch.manual_seed(5)
    save_file(towers.build(config).state_dict(), folder / towers.WEIGHTS_FILE)
    write_json(
        folder / towers.CONFIG_FILE,
        {"model_cfg": config, "preprocess_cfg": towers.preprocess_config(config)},
    )
    return folder


@pytest.fixture(scope="module")
def done(
    root: Path, checkpoint: Path, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> SuiteConfig:
    """Two models, measured."""
    config = SuiteConfig(
        models=("scratch", str(checkpoint)),
        data=root,
        out=tmp_path_factory.mktemp("results"),
        model=tiny,
        device="cpu",
    )
    assert run(config).measured == 4
    return config


def files(config: SuiteConfig, name: str) -> list[Path]:
    return [config.out / label_of(model) / name for model in config.models]


def test_each_task_of_each_model_has_a_file_with_outcomes(
    done: SuiteConfig, checkpoint: Path
) -> None:
    for name, task in (
        ("zero-shot-things", "zeroshot_classification"),
        ("retrieval-said", "zeroshot_retrieval"),
    ):
        for path, model in zip(files(done, f"{name}.json"), done.models, strict=True):
            (row,) = read_results(path)
            assert (row.task, row.options["pictures"]) == (task, 20)
            assert row.pretrained == ("random" if model == "scratch" else str(checkpoint))
            outcomes = read_outcomes(path.with_suffix(".npz"))[0].metrics
            assert set(outcomes) == set(row.metrics)
            for metric, outcome in outcomes.items():
                assert values(outcome, np.ones((1, 20)))[0] == pytest.approx(row.metrics[metric])


def test_a_rerun_measures_nothing_and_another_plan_is_refused(
    done: SuiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded a model")

    monkeypatch.setattr(suite_model, "load_encoder", load)
    summary = run(done)
    assert (summary.measured, summary.skipped) == (0, 4)
    assert set(summary.metrics["scratch"]) == {"zero-shot-things", "retrieval-said"}
    with pytest.raises(CapwrightError, match="was made with another plan"):
        run(SuiteConfig(**{**vars(done), "samples": 5}))


def test_tasks_of_one_model_share_the_pictures(
    root: Path, tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    kind = suite_model.Embeddings

    def embeddings(*arguments: Any, **options: Any) -> Any:
        made.append(kind(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(suite_model, "Embeddings", embeddings)
    run(SuiteConfig(models=("scratch",), data=root, out=tmp_path, model=tiny, device="cpu"))
    assert [one.computed for one in made] == [20]  # two tasks on the same 20 pictures


def test_the_suite_chooses_the_tasks(root: Path, tmp_path: Path) -> None:
    def names(choice: Any) -> list[str]:
        config = SuiteConfig(models=("scratch",), data=root, out=tmp_path, suite=choice)
        return [task.name for task in find_tasks(config)]

    assert names("zero-shot") == ["zero-shot-things"]
    assert names("retrieval") == ["retrieval-said"]
    assert names("all") == ["retrieval-said", "zero-shot-things"]
    with pytest.raises(CapwrightError, match=r"holds no data for the suite 'dense'"):
        run(SuiteConfig(models=("scratch",), data=root, out=tmp_path, suite="dense"))


@pytest.mark.slow
def test_the_scenes_are_measured_with_their_own_protocols(
    tmp_path: Path, toy_folders: dict[str, Path], tiny: dict[str, Any]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scenes").symlink_to(toy_folders["train"].parent)
    config = SuiteConfig(
        models=("scratch",), data=tmp_path / "data", out=tmp_path / "out", model=tiny,
        modes=("frozen",), seeds=2, recipe=FAST, device="cpu", methods=("clip", "contrast"),
    )  # fmt: skip
    # classes, captions and training-free segmentation of two splits, and the probe
    assert run(config).measured == 7
    (path,) = files(config, "dense-scenes.json")
    rows, outcomes = read_results(path), read_outcomes(path.with_suffix(".npz"))
    assert len(rows) == len(outcomes) == 2 * 2 * 2  # splits, tasks, seeds
    for number, row in enumerate(rows):
        metric = "miou" if row.task == "segmentation" else "rmse"
        value = values(outcomes[number].metrics[metric], np.ones((1, 8)))[0]
        assert value == pytest.approx(row.metrics[metric], rel=1e-5)
    for name in ("retrieval-scenes-seen", "zero-shot-scenes-unseen"):
        (path,) = files(config, f"{name}.json")
        (row,) = read_results(path)
        assert row.protocol.name in ("retrieval", "zeroshot-classification")
        kept = read_outcomes(path.with_suffix(".npz"))[0]
        assert set(kept.metrics) == set(row.metrics)
        for metric, outcome in kept.metrics.items():
            assert values(outcome, np.ones((1, 8)))[0] == pytest.approx(row.metrics[metric])
    (path,) = files(config, "training-free-scenes-unseen.json")
    assert {row.dataset for row in read_results(path)} == {"scenes-unseen"}


def test_models_are_compared_picture_by_picture(done: SuiteConfig) -> None:
    sources = tuple(path.parent for path in files(done, "x"))
    summary = compare(CompareConfig(sources=sources))
    rows = {(row.dataset, row.metric): row.cells for row in summary.rows}
    first, other = (rows["said", "text_retrieval_recall@10"][str(source)] for source in sources)
    assert first.difference is None
    assert other.difference == pytest.approx(other.mean - first.mean)
    assert other.low <= other.difference <= other.high
    assert other.low < other.high
    assert len(rows) == 3 + 6
    again = compare(CompareConfig(sources=(done.out,)))  # one folder with both models
    assert again.columns == ("random", done.models[1]) or again.columns == (
        done.models[1], "random"
    )  # fmt: skip


Show = Callable[[str], str]


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[str, str]:
    """Three seeds of one model against one of another, without outcomes."""
    for name, scores in (("a", [0.5, 0.6, 0.7]), ("b", [0.9])):
        rows = [
            {
                "dataset": "sea|side", "model": "m", "pretrained": name, "task": "segmentation",
                "metrics": {"miou": score, "iou/sea": 0.1, "classes_counted": 3},
                "protocol": {"name": "p", "version": "v1"}, "seed": seed, "samples_seen": None,
                "code_revision": "0", "language": "en", "options": {"mode": "frozen"},
            }
            for seed, score in enumerate(scores)
        ]  # fmt: skip
        content: Any = rows if name == "a" else {"arms": {}, "results": rows}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return str(tmp_path / "a.json"), str(tmp_path / "b.json")


def call(*arguments: str) -> Any:
    return CliRunner().invoke(group, list(arguments))


def test_the_table_as_text_markdown_csv_and_html(two_files: tuple[str, str]) -> None:
    text = call("compare", *two_files).stdout.splitlines()
    assert len(text) == 2
    assert text[1].split() == [
        "sea|side", "segmentation", "(frozen)", "miou", "0.6000", "±0.2484", "0.9000", "+0.3000"
    ]  # fmt: skip
    markdown = call("compare", *two_files, "--format", "markdown").stdout.splitlines()
    assert markdown[1] == "| --- | --- | --- | --- | --- | --- |"
    assert markdown[2].startswith("| sea\\|side | segmentation (frozen) | miou | 0.6000 ±0.2484 |")
    rows = list(csv.DictReader(io.StringIO(call("compare", *two_files, "--format", "csv").stdout)))
    assert [(row["mean"], row["seeds"], row["low"]) for row in rows] == [
        (str((0.5 + 0.6 + 0.7) / 3), "3", ""), ("0.9", "1", "")
    ]  # fmt: skip
    table = call("compare", *two_files, "--format", "html").stdout
    assert table.count("<tr>") == 2 and "<td>+0.3000</td>" in table
    assert "iou/sea" in call("compare", *two_files, "--details").stdout


def test_the_table_goes_to_a_file_too(two_files: tuple[str, str], tmp_path: Path) -> None:
    result = call("compare", *two_files, "--out", str(tmp_path / "t.txt"))
    assert (tmp_path / "t.txt").read_text() == result.stdout != ""


def test_a_source_without_results_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    for place, message in (
        (tmp_path, "holds no results"),
        (tmp_path / "manifest.json", "is no results file"),
        (tmp_path / "absent", "does not exist"),
    ):
        result = call("compare", str(place))
        assert result.exit_code == 2
        assert message in result.stderr


def test_models_without_a_subcommand_are_a_suite(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[SuiteConfig] = []

    def fake(config: SuiteConfig) -> dict[str, int]:
        seen.append(config)
        return {"measured": 0}

    monkeypatch.setattr(suite, "run", fake)
    places = ["--data", str(root), "--out", str(tmp_path)]
    for arguments in (
        ["runs/a", "ViT-B-32/openai", "--suite", "zero-shot", *places],
        ["--suite", "zero-shot", *places, "runs/a", "ViT-B-32/openai"],
        ["suite", "runs/a", "ViT-B-32/openai", "--suite", "zero-shot", *places],
    ):
        result = call("evaluate", *arguments, "--set", "seed=3")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == {"measured": 0}
    assert seen[0] == seen[1] == seen[2]
    assert (seen[0].models, seen[0].suite) == (("runs/a", "ViT-B-32/openai"), "zero-shot")
    assert seen[0].seed == 3
    assert "dense" in call("evaluate", "--help").stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("runs/a", "runs/a")}, "give at least one, each once"),
        ({"suite": "depth"}, "suite 'depth': allowed are zero-shot, retrieval, dense, all"),
    ],
)
def test_faults_of_the_plan_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=message):
        SuiteConfig(**{"models": ("a",), "data": tmp_path, "out": tmp_path, **change})
