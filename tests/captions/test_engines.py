"""Workers in processes: the same sidecars, deaths, errors and the alarm over all of them."""

import re
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from capwright.captions import engines, ray_crew
from capwright.captions.engines import portable
from capwright.captions.runner import Job, Running, StageSummary, run_stage, stage_folder
from capwright.core.errors import CapwrightError
from capwright.core.run_folder import only_one
from counting_stage import STAGE, CountingWorker, UnkindError, make, read_log


def run(work: Path, *, stage: str = STAGE, workers: int = 2, **settings: Any) -> StageSummary:
    running = Running(workers=workers, max_failure_rate=settings.pop("max_failure_rate", 0.05))
    worker = CountingWorker(log=work / f"{stage}.log", **settings)
    return run_stage(work, stage_folder(work, stage), {}, partial(make, worker), running)


def sidecars(work: Path, stage: str = STAGE) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stage_folder(work, stage).glob("*.parquet")}


def test_two_processes_write_what_one_writes(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = run(work, stage="one", workers=1)
    two = run(work, stage="two", pause_s=0.01)
    assert sidecars(work, "one") == sidecars(work, "two")
    counted = ("pictures", "captions", "tokens", "cost", "reasons")
    assert [getattr(one, name) for name in counted] == [getattr(two, name) for name in counted]
    assert two.warm_up_seconds > 0.05, "a process takes time to start"
    lines = read_log(work / "two.log")
    assert len(lines) == 48
    assert len({line.process for line in lines}) == 2, "each shard has its process"
    assert "two: 48/48 pictures" in capsys.readouterr().err


@pytest.mark.slow
def test_progress_comes_while_shards_are_in_flight(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def step(self: engines.Tally, shard: str, progress: Any) -> None:
        steps.append(progress.pictures)

    monkeypatch.setattr(engines.Tally, "step", step)
    run(work, pause_s=0.02)
    assert any(0 < pictures < 24 for pictures in steps)


@pytest.mark.slow
def test_a_shard_that_kills_three_workers_is_set_aside_and_named(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        CapwrightError,
        match=r"^3 workers ended on each of these shards, which were set aside: "
        r"00000 \(by SIGKILL, as when memory is short\): give workers more memory",
    ):
        run(work, deadly="00000")
    assert sidecars(work).keys() == {"00001.parquet"}
    begun = [line.key for line in read_log(work / f"{STAGE}.log") if line.shard == "00000"]
    assert begun == ["000000000"] * 3
    told = "a worker ended by SIGKILL, as when memory is short; its shard 00000 begins anew\n"
    assert capsys.readouterr().err.count(told) == 2
    assert run(work).pictures == 48, "nothing is lost"


def test_workers_that_cannot_start_are_told_from_bad_shards(work: Path) -> None:
    with pytest.raises(
        CapwrightError, match=r"3 workers in a row ended while they started, the last with exit c"
    ):
        run(work, deadly="start")


@pytest.mark.slow
def test_the_alarm_hears_all_workers_while_they_work(work: Path) -> None:
    with pytest.raises(
        CapwrightError, match=r"\d+ of \d+ pictures failed, .*\(\d+ x too odd\): repair"
    ) as caught:
        run(work, broken="too odd", pause_s=0.025)
    failed, seen = map(int, re.findall(r"^(\d+) of (\d+)", str(caught.value))[0])
    assert failed > 0.05 * seen and seen < 48
    assert not sidecars(work)


def test_an_error_of_a_worker_stops_the_run_with_its_traceback(work: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in a worker:.*__call__.*UnkindError: unkind a"):
        run(work, faulty="00001")


def test_errors_travel(tmp_path: Path) -> None:
    class Local(Exception):
        pass

    fault = CapwrightError("the server is gone: start it")
    assert portable(fault) is fault and not hasattr(fault, "__notes__")
    error = portable(ValueError("odd"))
    assert isinstance(error, ValueError) and "ValueError: odd" in error.__notes__[0]
    for unkind in (UnkindError("a", "b"), Local("c")):
        assert type(portable(unkind)) is RuntimeError


def test_without_ray_the_way_out_is_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CapwrightError, match=r"needs Ray: run pip install 'capwright\[ray\]', or"):
        run_stage(
            work,
            stage_folder(work, STAGE),
            {},
            partial(make, CountingWorker(log=work / "log")),
            Running(engine="ray", workers=2),
        )


def test_a_node_that_does_not_see_the_folder_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_crew, "SIGHT_S", 0.0)
    folder = stage_folder(work, STAGE)
    with only_one(folder) as who:
        job = Job(
            work=work, folder=folder, held_by=who, make=partial(make, CountingWorker(log=work))
        )
        assert ray_crew._Actor(job, work).start() == ("ready", None)
        elsewhere = replace(job, folder=work / "another disk")
        kind, error = ray_crew._Actor(elsewhere, work).start()
    assert kind == "error"
    assert re.search(
        r"^the node .* does not see .*another disk as the driver does: put", str(error)
    )


def test_a_ray_cluster_that_does_not_answer_is_named(work: Path) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(
        CapwrightError, match=rf"cannot join Ray at '{address}' \(.*refused\): start a cluster"
    ):
        run_stage(
            work,
            stage_folder(work, STAGE),
            {},
            partial(make, CountingWorker(log=work / "log")),
            Running(engine="ray", ray_address=address),
        )
