"""The stage around any captioner: order, batches, broken pictures, memory, the command line."""

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capwright.captions.describe import stage
from capwright.captions.describe.protocol import Caption
from capwright.captions.runner import Running, ShardProgress, stage_folder
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index, load_shard
from capwright.corpus.sidecars import read_sidecars


@dataclass(frozen=True, kw_only=True)
class Config:
    batch_size: int = 5
    overlap: int = 1
    wait_s: float = 0.0
    word: str = "a"


class Brightest:
    """Says which colour is brightest, and the second time that it was asked again."""

    name, revision, cost = "brightest", "1", 0.0
    sizes: list[int]

    def __init__(self, config: Config, style: str) -> None:
        self.config, self.style = config, style
        self.batch_size, self.overlap = config.batch_size, config.overlap
        self.sizes, self.most, self.now, self.lock = [], 0, 0, threading.Lock()

    def describe(self, images: Sequence[Image.Image]) -> list[list[Caption]]:
        with self.lock:
            self.sizes.append(len(images))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.config.wait_s)
        with self.lock:
            self.now -= 1
        found = []
        for image in images:
            mean = np.asarray(image).reshape(-1, 3).mean(0).round(3).tolist()
            box = (0.0, 0.0, 0.5, 1.0) if self.style == "regions" else None
            text = f"{self.config.word} {mean}"
            found.append([Caption(text=text, box=box, tokens=3), Caption(text=f"again {text}")])
        return found


@pytest.fixture(autouse=True)
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("capwright.captions.describe.fake")
    module.Config, module.build = Config, Brightest
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(stage, "BACKENDS", (*stage.BACKENDS, "fake"))


def config(work: Path, style: Any = "short", **options: Any) -> stage.DescribeConfig:
    return stage.DescribeConfig(work=work, backend="fake", style=style, options=Config(**options))


def test_captions_stand_in_the_order_of_the_index(work: Path) -> None:
    summary = stage.run(config(work))
    assert (summary.stage, summary.pictures, summary.captions) == ("describe-fake", 48, 96)
    rows = read_sidecars(stage_folder(work, "describe-fake")).to_pylist()
    keys = load_index(work)["key"].to_pylist()
    assert [row["key"] for row in rows] == [key for key in keys for _ in range(2)]
    assert len({row["text"] for row in rows}) > 10
    assert (rows[0]["model"], rows[0]["tokens"], rows[0]["box"]) == ("brightest", 3, None)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 100}, {"overlap": 3}])
def test_batches_and_overlap_do_not_change_what_is_written(
    work: Path, options: dict[str, int]
) -> None:
    table = load_shard(work, "00000")
    plain = stage.Worker(config(work))(table, ShardProgress())
    other = stage.Worker(config(work, **options))(table, ShardProgress())
    assert plain == other


def test_calls_overlap_as_far_as_the_captioner_allows(work: Path) -> None:
    for overlap in (1, 3):
        worker = stage.Worker(config(work, overlap=overlap, batch_size=3, wait_s=0.02))
        worker(load_shard(work, "00000"), ShardProgress())
        described: Any = worker.describer
        assert described.most == overlap
        assert described.sizes == [3] * 8


def test_regions_are_a_source_of_their_own_with_boxes(work: Path) -> None:
    summary = stage.run(config(work, style="regions"))
    assert summary.stage == "describe-fake-regions"
    rows = read_sidecars(stage_folder(work, summary.stage)).to_pylist()
    assert rows[0]["box"] == [0.0, 0.0, 0.5, 1.0] and rows[0]["source"] == summary.stage


def break_pictures(work: Path, count: int) -> None:
    file = work / "index" / "00000.parquet"
    table = pq.read_table(file)
    sizes = [40 if i < count else size for i, size in enumerate(table["image_size"].to_pylist())]
    column = table.schema.get_field_index("image_size")
    pq.write_table(table.set_column(column, "image_size", pa.array(sizes, pa.int64())), file)


def test_broken_pictures_are_counted_and_asked_for_again(work: Path) -> None:
    good = (work / "index" / "00000.parquet").read_bytes()
    break_pictures(work, 1)
    summary = stage.run(config(work))
    assert summary.reasons == {"failed: unreadable picture: OSError": 1}
    assert (summary.pictures, summary.captions, summary.kept) == (48, 95, 94)
    (work / "index" / "00000.parquet").write_bytes(good)
    again = stage.run(config(work), Running(retry_failed=True))
    assert (again.kept, again.reasons) == (96, {})
    whole = read_sidecars(stage_folder(work, "describe-fake")).to_pylist()
    assert [row["key"] for row in whole[::2]] == load_index(work)["key"].to_pylist()


def test_too_many_broken_pictures_stop_the_run_with_the_reasons(work: Path) -> None:
    break_pictures(work, 12)
    with pytest.raises(
        CapwrightError, match=r"pictures failed, more than .*0\.05.*x unreadable picture: OSError"
    ):
        stage.run(config(work))


def test_a_file_that_is_gone_is_a_reason_too(work: Path) -> None:
    file = work / "index" / "00000.parquet"
    table = pq.read_table(file)
    gone = pa.array(["/nowhere/0.tar"] * table.num_rows)
    column = table.schema.get_field_index("file")
    pq.write_table(table.set_column(column, "file", gone), file)
    with pytest.raises(CapwrightError, match=r"24 of .*24 x cannot read: FileNotFoundError"):
        stage.run(config(work), Running(max_failure_rate=0.4))


def test_another_captioner_in_the_same_place_is_refused(work: Path) -> None:
    stage.run(config(work))
    with pytest.raises(CapwrightError, match=r"another plan .*options.word 'a' -> 'the'"):
        stage.run(config(work, word="the"))


def test_a_dry_run_shows_captions_and_writes_nothing(work: Path) -> None:
    rows = stage.dry_run(config(work), 3)
    assert len(rows) == 6
    assert not stage_folder(work, "describe-fake").exists()


def test_wrong_choices_are_one_sentence(work: Path) -> None:
    with pytest.raises(CapwrightError, match="backend is 'x', but must be one of trained, coca"):
        stage.DescribeConfig(work=work, backend="x", options=Config())
    with pytest.raises(CapwrightError, match="style is 'epic', but must be one of short, long"):
        config(work, style="epic")
    with pytest.raises(CapwrightError, match="max_side is 0, but must be at least 1"):
        stage.DescribeConfig(work=work, backend="fake", options=Config(), max_side=0)
