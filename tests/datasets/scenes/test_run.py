import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.datasets.scenes import SceneConfig, run
from capwright.datasets.scenes.cutouts import load_cutouts
from scene_cutouts import make_cutouts


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cutouts(tmp_path_factory.mktemp("cutouts"))


def _config(cutouts: Path, out: Path, **changes: object) -> SceneConfig:
    settings: dict[str, object] = {"count": 25, "size": 48, "shard_size": 10, "workers": 1}
    return SceneConfig(cutouts=cutouts, out=out, **(settings | changes))  # type: ignore[arg-type]


def _samples(tar: Path) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(tar) as members:
        for member in members:
            key, _, suffix = member.name.partition(".")
            data = members.extractfile(member)
            assert data is not None
            samples[key][suffix] = data.read()
    return samples


def _bytes(out: Path) -> dict[str, bytes]:
    files = [*out.glob("*.tar"), *out.glob("oracle/*"), out / "classes.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_what_is_written(cutouts: Path, tmp_path: Path) -> None:
    summary = run(_config(cutouts, tmp_path / "out", human_fraction=0.5))
    assert (summary.scenes, summary.shards, summary.classes) == (25, 3, 3)
    assert summary.heights_assumed == ("beetles", "kites", "stones")
    classes = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert classes["classes"][0] == {"name": "beetles", "height_m": 1.0}
    samples = _samples(tmp_path / "out" / "00002.tar")
    assert sorted(samples) == [f"{20000 + i:09d}" for i in range(5)]
    oracle = pq.read_table(tmp_path / "out" / "oracle" / "00002.parquet").to_pylist()
    assert [row["key"] for row in oracle] == sorted(samples)
    for row in oracle:
        sample = samples[row["key"]]
        assert sorted(sample) == ["boxes.json", "depth.npy", "jpg", "json", "seg.png", "txt"]
        assert Image.open(io.BytesIO(sample["jpg"])).size == (48, 48)
        seg = np.asarray(Image.open(io.BytesIO(sample["seg.png"])))
        assert np.load(io.BytesIO(sample["depth.npy"])).dtype == np.float16
        record, boxes = json.loads(sample["json"]), json.loads(sample["boxes.json"])
        assert record["caption"] == sample["txt"].decode() and record["status"] == "success"
        assert record.get("human_caption", row["text"]) == row["text"]
        named = {1 + ["beetles", "kites", "stones"].index(box["class"]) for box in boxes}
        assert set(np.unique(seg)) == named | {0}
        assert row["source"] == "oracle"


def test_the_share_of_human_captions(cutouts: Path, tmp_path: Path) -> None:
    run(_config(cutouts, tmp_path, count=100, shard_size=100, human_fraction=0.2))
    records = [json.loads(one["json"]) for one in _samples(tmp_path / "00000.tar").values()]
    assert 8 <= sum("human_caption" in record for record in records) <= 32


def test_the_seed_decides_every_byte_and_processes_none(cutouts: Path, tmp_path: Path) -> None:
    run(_config(cutouts, tmp_path / "one"))
    run(_config(cutouts, tmp_path / "two", workers=2))
    run(_config(cutouts, tmp_path / "other", seed=1))
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
    assert _bytes(tmp_path / "one")["00000.tar"] != _bytes(tmp_path / "other")["00000.tar"]


def test_holdout_uses_the_other_cutouts(cutouts: Path, tmp_path: Path) -> None:
    found = load_cutouts(cutouts)
    for holdout, allowed in ((False, found.seen), (True, found.unseen)):
        out = tmp_path / str(holdout)
        summary = run(_config(cutouts, out, count=40, shard_size=40, holdout=holdout))
        assert summary.cutouts_used == len(allowed)
        boxes = [json.loads(one["boxes.json"]) for one in _samples(out / "00000.tar").values()]
        shown = {box["caption"] for sample in boxes for box in sample}
        assert shown <= {one.caption for one in allowed}
    classes = [(tmp_path / str(holdout) / "classes.json").read_text() for holdout in (False, True)]
    assert classes[0] == classes[1]


def test_finished_shards_are_kept(cutouts: Path, tmp_path: Path) -> None:
    config = _config(cutouts, tmp_path)
    run(config)
    whole = _bytes(tmp_path)
    (tmp_path / "00001.tar").unlink()
    (tmp_path / "oracle" / "00002.parquet").unlink()
    kept = (tmp_path / "00000.tar").stat().st_mtime_ns
    summary = run(config)
    assert summary.shards_already_there == 1
    assert (tmp_path / "00000.tar").stat().st_mtime_ns == kept
    assert _bytes(tmp_path) == whole


def test_another_plan_is_refused(cutouts: Path, tmp_path: Path) -> None:
    run(_config(cutouts, tmp_path, count=2))
    with pytest.raises(CapwrightError, match=r"seed 0 -> 3"):
        run(_config(cutouts, tmp_path, count=2, seed=3))


def test_photographs_as_backgrounds(cutouts: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    with pytest.raises(CapwrightError, match="no picture in --backgrounds"):
        run(_config(cutouts, tmp_path / "empty", count=1, backgrounds=photographs))
    Image.new("RGB", (60, 40), (10, 200, 30)).save(photographs / "meadow.jpg")
    run(_config(cutouts, tmp_path / "out", count=5, backgrounds=photographs))
    assert len(_samples(tmp_path / "out" / "00000.tar")) == 5
    with pytest.raises(CapwrightError, match="no folder of backgrounds at"):
        run(_config(cutouts, tmp_path / "none", count=1, backgrounds=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "count is 0: allowed are 1 to 100000000"),
        ({"size": 8}, "size is 8: allowed are 32 to 2048"),
        ({"max_objects": 0}, "max_objects is 0"),
        ({"human_fraction": 1.5}, r"human_fraction is 1\.5: allowed are 0 to 1"),
        ({"shard_size": 20000}, "shard_size is 20000: allowed are 1 to 10000"),
    ],
)
def test_values_out_of_range(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=words):
        _config(tmp_path, tmp_path, **changes)


def test_the_command(cutouts: Path, tmp_path: Path) -> None:
    arguments = ["scenes", "--cutouts", str(cutouts), "--size", "32", "--count", "2"]
    result = CliRunner().invoke(group, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["scenes"] == 2
    refused = CliRunner().invoke(group, [*arguments, "--out", str(tmp_path), "--seed", "-1"])
    assert refused.exit_code == 2 and "seed is -1" in refused.stderr
