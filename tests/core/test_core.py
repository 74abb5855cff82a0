"""Overrides, plans, atomic files, failure rates and the progress line."""

import errno
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from capwright.core.config import as_dict, digest, override
from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.core.files import atomic_path, read_json, write_json
from capwright.core.progress import Progress, Steps, duration, rate
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


@dataclass(frozen=True, kw_only=True)
class Span:
    first: int = 0
    last: int = 5

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise CapwrightError(f"first={self.first} is above last={self.last}")


@dataclass(frozen=True, kw_only=True)
class Spanned:
    span: Span = field(default_factory=Span)


def test_settings_are_checked_together_and_the_later_one_holds() -> None:
    both = ["span.first=9", "span.last=3", "span.last=10"]
    assert override(Spanned(), both) == Spanned(span=Span(first=9, last=10))
    whole = ['span={"first": 7, "last": 8}', "span.first=8"]
    assert override(Spanned(), whole) == Spanned(span=Span(first=8, last=8))
    with pytest.raises(CapwrightError, match="first=9 is above last=5"):
        override(Spanned(), ["span.first=9"])


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
    (tmp_path / ".a.json.0123abcd.partial").write_text("left by a killed run")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with atomic_path(tmp_path / "a.json") as one, atomic_path(tmp_path / "b.json") as other:
        assert one != other and one.parent == other.parent == tmp_path
        one.write_text("1")
        other.write_text("2")
    with (
        pytest.raises(CapwrightError, match="No space left on device; free space"),
        atomic_path(tmp_path / "b"),
    ):
        raise OSError(errno.ENOSPC, "disk")
    with pytest.raises(CapwrightError, match="does not exist: run the step that writes it"):
        read_json(tmp_path / "none.json")


def test_failures_stop_above_the_rate() -> None:
    failures = Failures("pictures", max_rate=0.1)
    failures.ok(91)
    failures.merge({"truncated": 8, "too large": 2, "empty": 4, "odd": 1}, 15)
    failures.add("too large")  # 16 of 107 are within three standard deviations of 10.7
    with pytest.raises(
        CapwrightError,
        match=r"16 of 107 pictures failed, more than the allowed share 0\.1 "
        r"\(8 x truncated; 4 x empty; 3 x too large\): repair the input or raise",
    ):
        failures.check()
    with pytest.raises(CapwrightError, match=r"\(29 x truncated; 4 x empty; 3 x too large\)"):
        failures.merge({"truncated": 21}, 21)


def test_counts_of_a_run_are_watched() -> None:
    failures = Failures("pictures", max_rate=0.0, advice="call someone")
    failures.watch(Counter({"bad": 3}), 19)
    with pytest.raises(CapwrightError, match=r"3 of 20 .*: call someone"):
        failures.watch(Counter({"bad": 3}), 20)


def test_progress_says_rate_failures_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("decode", 4, "pictures") as progress:
        progress.advance(4, failed=1, note="loss 2.0")
    assert "decode: 4/4 pictures" in (line := capsys.readouterr().err)
    assert "1 failed, loss 2.0, took 0s" in line
    assert [duration(s) for s in (4, 200, 7500)] == ["4s", "3m20s", "2h05m"]
    assert [rate(n, 2.0, "a") for n in (0, 1, 15, 3000)] == [
        "0 a/s",
        "0.5 a/s",
        "7.5 a/s",
        "1,500 a/s",
    ]


def test_progress_leaves_the_warm_up_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("capwright.core.progress.time.monotonic", lambda: now[0])
    with Progress("describe", 300, "pictures") as progress:
        now[0] = 100.0
        progress.warmed_up()
        now[0] = 110.0
        progress.reached(200, 1, note="2 x odd")
        progress.say("a worker ended")
        now[0] = 120.0
        progress.reached(300, 1)
        now[0] = 500.0  # tidying up
    first, said, *_, last = capsys.readouterr().err.splitlines()
    assert first == "describe: 200/300 pictures, 20 pictures/s, 1 failed, 2 x odd, 5s left"
    assert said == "a worker ended"
    assert last == "describe: 300/300 pictures, 15 pictures/s, 1 failed, 2 x odd, took 20s"


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
