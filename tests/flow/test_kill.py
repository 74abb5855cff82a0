"""Killed at any moment and run again, a stage writes what an uninterrupted run writes."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from capwright.captions.runner import stage_folder
from capwright.corpus.index import IndexConfig, shard_sizes
from capwright.corpus.index import run as run_index
from corpus_files import picture, tar_bytes
from counting_stage import STAGE, Line, alive, read_log, running, until

SHARDS, PER_SHARD = 8, 12

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with an index of 8 x 12 pictures."""
    folder = tmp_path_factory.mktemp("killed")
    for shard in range(SHARDS):
        members = []
        for i in range(PER_SHARD):
            key = f"{shard:03d}{i:03d}"
            members += [(f"{key}.jpg", picture(shard * PER_SHARD + i)), (f"{key}.txt", b"a thing")]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    run_index(IndexConfig(corpus=str(folder), work=folder / "work"))
    return folder / "work"


@pytest.fixture(scope="module")
def whole(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The sidecars of an uninterrupted run."""
    work = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(indexed, work)
    finish(work, work / "log")
    assert len(sidecars(work)) == SHARDS
    return sidecars(work)


@pytest.fixture
def work(indexed: Path, tmp_path: Path) -> Path:
    shutil.copytree(indexed, tmp_path / "work")
    return tmp_path / "work"


def sidecars(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stage_folder(work, STAGE).glob("*.parquet")}


def finish(work: Path, log: Path, *options: str) -> str:
    """Run to the end; returns stderr."""
    with running(work, log, *options) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return errors


def until_begun(log: Path, pictures: int) -> None:
    until(lambda: len(read_log(log)) >= pictures)


def twice(lines: list[Line]) -> set[str]:
    """Shards with a picture that was begun more than once."""
    counts = Counter((line.shard, line.key) for line in lines)
    return {shard for (shard, _), count in counts.items() if count > 1}


def unfinished(work: Path, lines: list[Line]) -> set[str]:
    """Shards that were begun and have no sidecar."""
    return {line.shard for line in lines} - {
        name.removesuffix(".parquet") for name in sidecars(work)
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_and_the_same_files(work: Path, whole: dict[str, bytes], workers: int) -> None:
    log = work / "log"
    options = ["--pause", "0.01", "--workers", str(workers)]
    moments = random.Random(workers)
    in_flight: Counter[str] = Counter()
    for kill in range(10):
        before = len(read_log(log))
        # one in four kills comes while the run starts; each leaves work for those that follow
        pictures = 0 if kill % 4 == 3 else moments.randint(1, 11)
        with running(work, log, *options) as process:
            if pictures:
                until_begun(log, before + pictures)
                time.sleep(moments.uniform(0, 0.02))
            else:
                time.sleep(moments.uniform(0.05, 1.0))
            process.send_signal(signal.SIGKILL)
            process.wait()
        # all workers of the killed run are dead now
        assert len(sidecars(work)) < SHARDS
        assert all(whole[name] == data for name, data in sidecars(work).items())
        in_flight.update(unfinished(work, read_log(log)[before:]))
    finish(work, log, *options)
    assert sidecars(work) == whole
    assert not list(stage_folder(work, STAGE).glob(".*.partial"))
    counts = Counter((line.shard, line.key) for line in read_log(log))
    assert len(counts) == SHARDS * PER_SHARD == sum(shard_sizes(work).values())
    for (shard, key), count in counts.items():
        assert count <= 1 + in_flight[shard], f"{key} of {shard} was described {count} times"
    assert sum(in_flight.values()) >= 5, "the kills came between the pictures"


def test_workers_end_with_their_driver(work: Path) -> None:
    log = work / "log"
    with running(work, log, "--pause", "20", "--workers", "2") as process:
        until_begun(log, 2)
        process.kill()
        process.wait()
        until(lambda: not any(alive(line.process) for line in read_log(log)), seconds=5)
    assert not sidecars(work)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_killed_worker_costs_its_shard_alone(
    work: Path, whole: dict[str, bytes], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(work.parent))  # where Ray keeps its token
    log = work / "log"
    with running(work, log, "--pause", "0.05", "--engine", engine, "--workers", "2") as process:
        until_begun(log, 30)
        victim = read_log(log)[-1]
        os.kill(victim.process, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert sidecars(work) == whole
    lines = read_log(log)
    assert twice(lines) <= {victim.shard}
    # a new actor takes Ray seconds, by when the other one may have finished everything
    enough = {3} if engine == "local" else {2, 3}
    assert len({line.process for line in lines}) in enough, "another worker took its place"
    wanted = "a worker ended by SIGKILL" if engine == "local" else "a worker ended in Ray (Actor"
    assert wanted in errors and f"its shard {victim.shard} begins anew" in errors
    assert "ResourceWarning" not in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("sent", "how"),
    [
        (signal.SIGINT, ["--workers", "1"]),
        (signal.SIGINT, ["--workers", "2"]),
        (signal.SIGTERM, ["--workers", "1"]),
        (signal.SIGTERM, ["--workers", "2"]),
        (signal.SIGTERM, ["--workers", "2", "--engine", "ray"]),
    ],
)
def test_asked_to_stop_it_stops_with_a_sentence(
    work: Path,
    whole: dict[str, bytes],
    sent: signal.Signals,
    how: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(work.parent))  # where Ray keeps its token
    log = work / "log"
    with running(work, log, "--pause", "0.05", *how) as process:
        until_begun(log, 20)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + sent
        assert not any(alive(line.process) for line in read_log(log))
    sentence = f"capwright: stopped by {sent.name}; finished shards are kept, and the same command"
    assert errors.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in errors
    assert not list(stage_folder(work, STAGE).glob(".*.partial"))
    begun = unfinished(work, read_log(log))
    finish(work, log)
    assert sidecars(work) == whole
    assert twice(read_log(log)) <= begun


def test_a_second_run_is_turned_away_and_harms_nothing(work: Path, whole: dict[str, bytes]) -> None:
    log = work / "log"
    with running(work, log, "--pause", "0.02") as first:
        until_begun(log, 10)
        with running(work, work / "other") as second:
            out, errors = second.communicate(timeout=60)
        assert (second.returncode, out) == (2, "")
        assert errors.startswith("capwright: another run is writing to ")
        assert f"process {first.pid} on " in errors and len(errors.splitlines()) == 1
        first.communicate(timeout=60)
        assert first.returncode == 0
    assert sidecars(work) == whole
    assert not twice(read_log(log))


def test_a_dry_run_shows_ten_samples_and_writes_nothing(work: Path) -> None:
    before = sorted(path for path in work.rglob("*"))
    with running(work, work.parent / "log", "--dry-run") as process:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert len(out.splitlines()) == 10
    assert '"key": "000009"' in out.splitlines()[-1]
    assert sorted(path for path in work.rglob("*")) == before
