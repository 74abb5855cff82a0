"""Overrides, plans, atomic files, failure rates and the progress line."""

import errno
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from capwright.core.config import as_dict, digest, override
from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.core.files import atomic_path, read_json, write_json
from capwright.core.progress import Progress, Steps, duration
from capwright.core.run_folder import MetricsLog, claim


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 8
    layers: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    out: Path = Path("runs")
    name: str = "a"
    rate: float | None = None
    flag: bool = False


def test_override_converts_to_the_fields_type() -> None:
    changed = override(
        Outer(),
        ["inner.width=16", "inner.layers=[3]", "out=x/y", "name=12", "rate=1e-3", "flag=true"],
    )
    assert changed == Outer(
        inner=Inner(width=16, layers=(3,)), out=Path("x/y"), name="12", rate=1e-3, flag=True
    )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("inner.widht=3", "unknown key 'widht': did you mean 'width'"),
        ("zzz=3", "allowed are inner, out, name, rate, flag"),
        ("inner.width=wide", "has a wrong value"),
        ("name", "has no '='"),
        ("name.first=3", "goes deeper than the configuration"),
    ],
)
def test_override_refuses_with_a_sentence(assignment: str, message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        override(Outer(), [assignment])


def test_a_folder_belongs_to_one_plan(tmp_path: Path) -> None:
    claim(tmp_path, Outer())
    claim(tmp_path, as_dict(Outer()))
    with pytest.raises(CapwrightError, match=r"another plan \(inner.width 8 -> 9\)"):
        claim(tmp_path, Outer(inner=Inner(width=9)))
    assert digest(Outer()) == digest(as_dict(Outer())) != digest(Outer(name="b"))


def test_atomic_path_leaves_the_old_file_on_an_error(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    (tmp_path / ".a.json.partial").write_text("left by a killed run")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with (
        pytest.raises(CapwrightError, match="No space left on device; free space"),
        atomic_path(tmp_path / "b"),
    ):
        raise OSError(errno.ENOSPC, "disk")
    with pytest.raises(CapwrightError, match="does not exist: run the step that writes it"):
        read_json(tmp_path / "none.json")


def test_failures_stop_above_the_rate() -> None:
    failures = Failures("pictures", max_rate=0.1)
    failures.ok(30)
    for _ in range(3):
        failures.add("truncated")
    with pytest.raises(
        CapwrightError, match=r"4 of 34 pictures failed.*3 x truncated; 1 x too large"
    ):
        failures.add("too large")


def test_progress_says_rate_failures_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("decode", 4, "pictures") as progress:
        progress.advance(4, failed=1, note="loss 2.0")
    assert "decode: 4/4 pictures" in (line := capsys.readouterr().err)
    assert "1 failed, loss 2.0, took 0s" in line
    assert [duration(s) for s in (4, 200, 7500)] == ["4s", "3m20s", "2h05m"]


def test_steps_scale_what_is_left_by_the_pace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("capwright.core.progress.time.monotonic", lambda: now[0])
    steps = Steps({"a": 10, "b": 30})
    steps.begin("a")
    now[0] += 20  # twice as slow as usual
    steps.begin("b")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "[1/2] a (0s passed, about 40s left)"
    assert second == "[2/2] b (20s passed, about 1m00s left)"


def test_metrics_are_a_line_each(tmp_path: Path) -> None:
    for step in (1, 2):
        with MetricsLog(tmp_path / "m.jsonl") as log:
            log.write(step=step)
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
