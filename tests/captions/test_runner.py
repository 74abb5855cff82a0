"""The loop of every caption stage: resuming, refusing, repairing, counting."""

import errno
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from capwright.captions.runner import (
    FAILED,
    CaptionShard,
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    check_complete,
    preview,
    run_stage,
    shard_seed,
    stage_folder,
)
from capwright.core.errors import CapwrightError
from capwright.core.run_folder import only_one
from capwright.corpus.index import load_index, write_index_shard
from capwright.corpus.sidecars import read_sidecars
from counting_stage import STAGE, CountingWorker, read_log

EXTRA = (pa.field("length", pa.int32()),)


def caption(table: pa.Table, progress: ShardProgress) -> Rows:
    shard = table["shard"][0].as_py()
    return [
        {
            "key": key,
            "source": "test",
            "text": f"{key} {shard_seed(0, shard)}",
            "keep": i % 2 == 0,
            "reason": "" if i % 2 == 0 else "odd",
            "length": len(key),
        }
        for i, key in enumerate(table["key"].to_pylist())
    ]


def run(work: Path, stage: str, worker: CaptionShard, **running: Any) -> StageSummary:
    plan = {"a": 1}
    return run_stage(
        work, stage_folder(work, stage), plan, lambda: worker, Running(**running), EXTRA
    )


def test_a_stopped_stage_goes_on_and_writes_the_same_files(work: Path) -> None:
    whole = run(work, "whole", caption)

    def stopped(table: pa.Table, progress: ShardProgress) -> Rows:
        if table["shard"][0].as_py() == "00001":
            raise KeyboardInterrupt
        return caption(table, progress)

    with pytest.raises(KeyboardInterrupt):
        run(work, "cut", stopped)
    with pytest.raises(CapwrightError, match=r"cut has no captions for 00001: run the stage"):
        check_complete(work, "cut")
    resumed = run(work, "cut", caption)
    check_complete(work, "cut")
    assert (whole.shards_reused, resumed.shards_reused) == (0, 1)
    for shard in ("00000", "00001"):
        one, other = (stage_folder(work, s) / f"{shard}.parquet" for s in ("cut", "whole"))
        assert one.read_bytes() == other.read_bytes()


def test_the_summary_counts_all_shards_and_this_runs_pace(work: Path) -> None:
    summary = run(work, "count", caption)
    assert (summary.pictures, summary.captions, summary.kept) == (48, 48, 24)
    assert summary.reasons == {"odd": 24}
    assert summary.pictures_per_second > 0 and summary.captions_per_second > 0
    again = run(work, "count", caption)
    assert (again.pictures, again.shards_reused, again.reasons) == (48, 2, {"odd": 24})
    assert (again.pictures_per_second, again.tokens_per_second, again.cost) == (0, 0, 0)


def test_warm_up_is_not_in_the_rates(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("capwright.core.progress.time.monotonic", lambda: now[0])

    def make() -> CaptionShard:
        now[0] += 100
        return slow

    def slow(table: pa.Table, progress: ShardProgress) -> Rows:
        now[0] += 2
        progress.advance(tokens=6)
        return caption(table, progress)

    summary = run_stage(work, stage_folder(work, "warm"), {}, make, extra=EXTRA)
    assert (summary.warm_up_seconds, summary.pictures_per_second) == (100, 48 / 4)
    assert (summary.captions_per_second, summary.tokens_per_second) == (12, 3)


def test_the_line_shows_captions_tokens_cost_and_reasons(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = CountingWorker(log=work / "log", broken="server: timeout")
    summary = run(work, STAGE, worker, max_failure_rate=0.5)
    assert summary.reasons == {"failed: server: timeout": 16}
    assert (summary.tokens, summary.cost) == (4 * 48, 24.0)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "describe-counting: 48/48 pictures" in line
    for part in (" captions/s", " tokens/s", "16 failed", "cost 24.00", "16 x server: timeout"):
        assert part in line


def test_another_plan_is_refused_with_the_difference(work: Path) -> None:
    folder = stage_folder(work, "plan")
    run_stage(work, folder, {"a": 1}, lambda: caption)
    before = read_sidecars(folder)
    with pytest.raises(CapwrightError, match=r"another plan .*a 1 -> 2"):
        run_stage(work, folder, {"a": 2}, lambda: caption)
    assert read_sidecars(folder).equals(before)


def test_another_corpus_is_refused(work: Path) -> None:
    run(work, "corpus", caption)
    rows = load_index(work).to_pylist()[:10]
    write_index_shard(work / "index", "00000", rows, {})
    with pytest.raises(CapwrightError, match=r"another plan .*corpus"):
        run(work, "corpus", caption)


def test_a_folder_that_another_run_holds_is_refused(work: Path) -> None:
    folder = stage_folder(work, "held")
    with (
        only_one(folder),
        pytest.raises(CapwrightError, match=r"another run is writing to .*held \(process \d+"),
    ):
        run(work, "held", caption)
    assert run(work, "held", caption).pictures == 48


def test_leftovers_of_a_killed_run_are_removed(work: Path) -> None:
    folder = stage_folder(work, "left")
    folder.mkdir(parents=True)
    (folder / ".00001.parquet.01234567.partial").write_text("half")
    run(work, "left", caption)
    names = {path.name for path in folder.iterdir()}
    assert names == {".lock", "manifest.json", "00000.parquet", "00001.parquet"}


def test_limit_takes_whole_shards_and_a_later_run_goes_on(work: Path) -> None:
    first = run(work, "limit", caption, limit=1)
    assert (first.pictures, first.shards, first.shards_left) == (24, 2, 1)
    again = run(work, "limit", caption, limit=24)
    assert (again.pictures, again.shards_reused) == (24, 1)
    last = run(work, "limit", caption, limit=25)
    assert (last.pictures, last.shards_reused, last.shards_left) == (48, 1, 0)


def test_failed_pictures_are_described_again_when_asked(work: Path) -> None:
    log = work / "log"
    worker = CountingWorker(log=log, broken="no answer")
    with pytest.raises(CapwrightError, match=r"of \d+ pictures failed, more than the allowed"):
        run(work, STAGE, worker)
    assert not (stage_folder(work, STAGE) / "00001.parquet").exists()
    run(work, STAGE, worker, max_failure_rate=0.4)
    begun = len(read_log(log))
    assert run(work, STAGE, worker).shards_reused == 2, "not without being asked"
    (log.with_name("repaired")).touch()
    repaired = run(work, STAGE, worker, retry_failed=True)
    assert len(read_log(log)) == begun + 16
    assert (repaired.pictures, repaired.reasons, repaired.shards_reused) == (48, {}, 0)
    table = read_sidecars(stage_folder(work, STAGE))
    assert table["key"].to_pylist() == load_index(work)["key"].to_pylist()
    assert table["text"].to_pylist()[2] == "picture 000000002 of 00000"


def test_pictures_that_fail_again_are_judged_among_all_of_their_shards(work: Path) -> None:
    def one_fails(table: pa.Table, progress: ShardProgress) -> Rows:
        bad = {"keep": False, "reason": FAILED + "odd", "text": ""}
        rows = caption(table, progress)
        return [row | bad if row["key"] == "000010003" else row for row in rows]

    run(work, "again", one_fails)
    assert run(work, "again", one_fails, retry_failed=True).reasons["failed: odd"] == 1


def test_too_many_failures_stop_the_run_in_the_middle_of_a_shard(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capwright.captions.runner.SHOW_EVERY_S", 0.0)
    worker = CountingWorker(log=work / "log", broken="failed to resize")
    wanted = r"6 of 20 pictures failed, more than .* 0\.05 \(6 x failed to resize\): repair the"
    with pytest.raises(CapwrightError, match=wanted):
        run(work, STAGE, worker)
    assert len(read_log(work / "log")) == 20
    assert not list(stage_folder(work, STAGE).glob("*.parquet"))


def test_a_preview_writes_nothing(work: Path) -> None:
    before = sorted(work.rglob("*"))
    rows = preview(work, lambda: caption, 30)
    assert [row["key"] for row in rows] == load_index(work)["key"].to_pylist()[:30]
    assert sorted(work.rglob("*")) == before


def test_an_empty_shard_is_no_trouble(work: Path) -> None:
    write_index_shard(work / "index", "00002", [], {"no picture": 3})
    assert run(work, "empty", caption).shards == 3
    assert read_sidecars(stage_folder(work, "empty"), ["00002"]).num_rows == 0


def test_seeds_differ_by_shard_and_seed() -> None:
    seeds = {shard_seed(0, "a"), shard_seed(0, "b"), shard_seed(1, "a")}
    assert len(seeds) == 3
    assert shard_seed(0, "a") == shard_seed(0, "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "spark"}, "engine is 'spark', but must be local or ray"),
        ({"workers": 0}, "workers is 0, but must be at least 1"),
        ({"limit": 0}, "limit is 0, but must be at least 1 picture"),
        ({"max_failure_rate": 5.0}, r"max_failure_rate is 5.0, .* from 0 to 1: try 0.05"),
        ({"gpus_per_worker": 1.0}, "for Ray alone: choose the engine ray too"),
    ],
)
def test_impossible_ways_to_run_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        Running(**settings)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing(work: Path, small_disk: Path) -> None:
    folder = small_disk / "describe-test"
    make = partial(_make, caption)
    (small_disk / "ballast").write_bytes(bytes(20 * 1024))
    with pytest.raises(CapwrightError, match=r"cannot write .*parquet: No space left on device;"):
        run_stage(work, folder, {}, make, extra=EXTRA)
    assert {path.name for path in folder.iterdir()} <= {".lock", "manifest.json", "00000.parquet"}
    (small_disk / "ballast").unlink()
    assert run_stage(work, folder, {}, make, extra=EXTRA).pictures == 48


def test_a_read_only_folder_is_one_sentence(work: Path, small_disk: Path) -> None:
    folder = small_disk / "describe-test"
    run_stage(work, folder, {}, partial(_make, caption), extra=EXTRA)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    wanted = rf"cannot write .*: {os.strerror(errno.EROFS)}; free space or choose a folder"
    with pytest.raises(CapwrightError, match=wanted):
        run_stage(work, folder, {}, partial(_make, caption), extra=EXTRA)
    assert read_sidecars(folder).num_rows == 48


def _make(worker: CaptionShard) -> CaptionShard:
    return worker
