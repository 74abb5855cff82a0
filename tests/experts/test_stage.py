"""The stage through the real command line: trained, labelled, stopped, gone on with, read back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from capwright.captions.runner import preview
from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.corpus.index import load_index
from capwright.corpus.sidecars import read_sidecars
from capwright.experts import small, stage
from capwright.pretrain.labels import load_labels
from toy_scenes import CLASSES, DEPTH, PER_SHARD, SHARDS, toy

SMALL = [
    "small.labelled=0.5", "small.picture_size=64", "small.loss_size=32", "small.hidden=16",
    "small.samples=2000", "small.batch_size=20", "small.views=2", "decode_threads=1",
]  # fmt: skip
BOTH = ["--with", "segmentation=scenes", "--with", "depth=scenes", "--normals", "from-depth"]


def call(corpus: Path, work: Path, *arguments: str, settings: list[str] = SMALL) -> Result:
    sets = [part for value in settings for part in ("--set", value)]
    place = [str(corpus), "--work", str(work)]
    return CliRunner().invoke(group, ["experts", *place, *arguments, *sets])


@pytest.fixture(scope="module")
def labelled(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("labelled") / "work"
    result = call(scenes, work, *BOTH, "--size", "32")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["pictures"] == SHARDS * PER_SHARD and summary["captions"] == 24
    assert summary["shards_left"] == 0 and summary["reasons"] == {}
    return work


@pytest.mark.slow
def test_the_small_expert_learns_from_some_pictures_what_all_show(labelled: Path) -> None:
    folder = labelled / "captions" / "experts"
    plan = read_json(folder / "manifest.json")["plan"]
    assert plan["labels"] == ["segmentation", "depth", "normals"]
    assert plan["classes"] == list(CLASSES) and plan["depth_kind"] == "metric"
    index = load_index(labelled)
    found = load_labels(folder, index, labelled / "labels")(np.arange(24))
    true = [toy(int(key)) for key in index["key"].to_pylist()]
    seg = np.stack([seg[1::2, 1::2] for _, seg, _ in true])
    depth = np.stack([depth[1::2, 1::2] for _, _, depth in true])
    assert (found["segmentation"] == seg).mean() > 0.9
    assert np.median(np.abs(found["depth"] - np.log(depth))) < 0.3
    normals = found["normals"].astype(float) / 127
    known = normals.any(axis=1)
    assert 0.2 < known.mean() < 1
    assert np.allclose(np.linalg.norm(normals, axis=1)[known], 1, atol=0.02)
    assert (normals[:, 2][known] < 0.5).all()  # they face the camera


@pytest.mark.slow
def test_rows_say_who_labelled(labelled: Path) -> None:
    row = read_sidecars(labelled / "captions" / "experts").to_pylist()[0]
    assert row["source"] == "experts" and row["text"] == "" and row["keep"]
    assert row["model"] == "segmentation=small-expert, depth=small-expert"
    assert row["revision"].startswith("segmentation=seed 0, efficientnet")
    assert row["segmentation"][:4] == row["depth"][:4] == row["normals"][:4] == b"\x89PNG"


@pytest.mark.slow
def test_only_the_chosen_pictures_labels_are_looked_at(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = load_index(labelled)
    few = small.labelled_rows(index, small.SmallExpertConfig(labelled=0.25), seed=0)
    assert few.num_rows == 6
    assert few.equals(small.labelled_rows(index, small.SmallExpertConfig(labelled=0.25), seed=0))
    other = small.labelled_rows(index, small.SmallExpertConfig(labelled=0.25), seed=1)
    assert few["key"] != other["key"]
    capped = small.labelled_rows(index, small.SmallExpertConfig(labelled=1, max_pictures=5), 0)
    assert capped.num_rows == 5
    described = small.describe(small.weights_folder(labelled))
    assert described["pictures"] == 12


@pytest.mark.slow
def test_a_stopped_stage_goes_on_and_writes_the_same_bytes(
    scenes: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second shard; the rerun trains nothing again and leaves the first shard."""
    import shutil

    work = tmp_path / "work"
    shutil.copytree(labelled / "index", work / "index")
    label = stage.Worker.__call__

    def dies(self: Any, table: Any, progress: Any) -> Any:
        if table["shard"][0].as_py() == "00001":
            raise KeyboardInterrupt
        return label(self, table, progress)

    monkeypatch.setattr(stage.Worker, "__call__", dies)
    assert call(scenes, work, *BOTH, "--size", "32").exit_code == 130
    folder = work / "captions" / "experts"
    assert [f.name for f in sorted(folder.glob("*.parquet"))] == ["00000.parquet"]
    first = (folder / "00000.parquet").stat().st_mtime_ns
    monkeypatch.undo()
    monkeypatch.setattr(small, "train", None)
    result = call(scenes, work, *BOTH, "--size", "32")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["shards_reused"] == 1
    assert (folder / "00000.parquet").stat().st_mtime_ns == first
    for file in folder.glob("*.parquet"):
        whole = labelled / "captions" / "experts" / file.name
        assert file.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_trained_expert_labels_another_corpus(
    unlabelled: Path, labelled: Path, tmp_path: Path
) -> None:
    trained = f"local:{small.weights_folder(labelled)}"
    arguments = ["--with", f"segmentation={trained}", "--with", f"depth={trained}"]
    result = call(unlabelled, tmp_path, *arguments, "--size", "32", settings=[])
    assert result.exit_code == 0, result.output
    ours = read_sidecars(tmp_path / "captions" / "experts", ["00000"])
    theirs = read_sidecars(labelled / "captions" / "experts", ["00000"])
    assert ours["segmentation"] == theirs["segmentation"] and ours["depth"] == theirs["depth"]
    assert "normals" not in ours.column_names


@pytest.mark.slow
def test_experts_of_transformers(
    unlabelled: Path, model: Callable[[str], str], tmp_path: Path
) -> None:
    arguments = [
        "--with", f"segmentation={model('segformer')}", "--with", f"depth={model('dpt')}",
        "--normals", "from-depth", "--size", "16", "--name", "experts-tiny",
    ]  # fmt: skip
    settings = ["picture_size=64", "device=cpu", "batch_size=5"]
    shown = call(unlabelled, tmp_path, *arguments, "--dry-run", "2", settings=settings)
    assert shown.exit_code == 0, shown.output
    first = json.loads(shown.stdout.splitlines()[0])
    assert sum(first["segmentation"].values()) == pytest.approx(1, abs=0.01)
    assert first["depth"]["unit"] == "inverse, no unit" and 0 < first["normals"]["known"] <= 1
    assert not (tmp_path / "captions" / "experts-tiny").exists()
    result = call(unlabelled, tmp_path, *arguments, settings=settings)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "captions" / "experts-tiny"
    plan = read_json(folder / "manifest.json")["plan"]
    assert plan["depth_kind"] == "relative" and len(plan["classes"]) == 6
    found = load_labels(folder, load_index(tmp_path), tmp_path / "labels")(np.arange(24))
    assert found["segmentation"].shape == (24, 16, 16) and found["segmentation"].max() < 6
    flat = found["depth"].astype(float).reshape(24, -1)
    assert np.allclose(flat.min(axis=1), 0) and np.allclose(flat.max(axis=1), 1)
    other = call(unlabelled, tmp_path, *arguments, settings=["picture_size=32", *settings[1:]])
    assert other.exit_code == 2 and "was made with another plan (picture_size 64 -> 32" in (
        other.stderr
    )


def test_a_picture_that_cannot_be_read_is_counted_and_has_no_labels(
    unlabelled: Path, model: Callable[[str], str], tmp_path: Path
) -> None:
    call(unlabelled, tmp_path, "--with", f"depth={model('glpn')}", settings=["size=0"])  # indexes
    config = stage.ExpertsConfig(
        work=tmp_path, depth=model("glpn"), size=16, picture_size=64, device="cpu"
    )
    worker = stage.Worker(config, {"depth": stage.facts(config, "depth")})
    worker.reader.read = lambda *place: b"no picture"  # type: ignore[method-assign]
    rows = preview(tmp_path, lambda: worker, 3)
    assert [row["keep"] for row in rows] == [False] * 3
    assert rows[0]["reason"] == "failed: unreadable picture: UnidentifiedImageError"
    assert "depth" not in rows[0]


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ([], [], "no expert is named: give --with segmentation=MODEL, --with depth=MODEL or both"),
        (["--with", "normals=x"], [], "--with is 'normals=x', but must be segmentation=MODEL"),
        (["--with", "depth"], [], "--with is 'depth', but must be segmentation=MODEL"),
        (["--with", "depth=a", "--with", "depth=b"], [], "names two experts for depth (a, b)"),
        (
            ["--with", "segmentation=scenes", "--normals", "from-depth"], [],
            "normals come from depth: give --with depth=MODEL too",
        ),
        (["--with", "depth=local:nowhere"], [], "there is no small expert at 'nowhere'"),
        (["--with", "depth=scenes", "--name", "labels"], [], "name is 'labels', but must be"),
        (["--with", "depth=scenes"], ["small.labelled=0"], "small.labelled is 0.0, but must be"),
        (["--with", "depth=scenes"], ["small.picture_size=100"], "needs a multiple of 32"),
        (["--with", "depth=scenes"], ["field_of_view=200"], "field_of_view is 200.0, but must be"),
        (["--with", "depth=scenes"], [], "none of the 24 pictures has .seg.png and .depth.npy"),
        (["--with", "depth=scenes"], ["sise=3"], "unknown key 'sise': did you mean 'size'?"),
    ],
)  # fmt: skip
def test_a_users_faults(
    unlabelled: Path, tmp_path: Path, arguments: list[str], settings: list[str], said: str
) -> None:
    result = call(unlabelled, tmp_path, *arguments, settings=settings)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_classes_are_a_sentence_when_the_scenes_have_none(unlabelled: Path, tmp_path: Path) -> None:
    import shutil

    corpus = tmp_path / "tars"
    shutil.copytree(unlabelled, corpus)
    (corpus / "classes.json").unlink()
    result = call(corpus, tmp_path / "work", "--with", "segmentation=scenes")
    assert result.exit_code == 2 and "classes.json does not exist" in result.stderr


def test_the_toy_is_what_its_tables_say() -> None:
    _, seg, depth = toy(3)
    assert set(np.unique(seg)) == {0, 2} and set(np.unique(depth)) == {DEPTH[0], DEPTH[2]}
    with pytest.raises(CapwrightError):
        stage.ExpertsConfig(work=Path())
