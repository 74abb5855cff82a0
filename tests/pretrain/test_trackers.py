"""The numbers of a run, read back from the files that the real packages write."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capwright.core.errors import CapwrightError
from capwright.pretrain import trackers
from capwright.pretrain.trackers import Trackers

PLAN = {"objectives": {"contrastive": 1.0}, "seed": 3}


def train(out: Path, names: tuple[str, ...], start: int, stop: int, offset: float = 0.0) -> None:
    with Trackers(out, names, PLAN, start) as tracked:
        for seen in range(start + 8, stop + 1, 8):
            tracked.write(seen, {"step": seen // 8 - 1, "loss": 100 / seen + offset})


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_metrics_forget_what_is_repeated_and_a_line_cut_short(tmp_path: Path) -> None:
    train(tmp_path, (), 0, 40)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"samples_seen": 48, "lo')
    train(tmp_path, (), 16, 40, offset=1)
    assert [line["samples_seen"] for line in lines(tmp_path)] == [8, 16, 24, 32, 40]
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4]
    assert [line["loss"] for line in lines(tmp_path)] == [
        100 / 8, 100 / 16, 100 / 24 + 1, 100 / 32 + 1, 100 / 40 + 1,
    ]  # fmt: skip


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    train(tmp_path, (), 0, 40)
    train(tmp_path, (), 0, 16)
    assert [line["samples_seen"] for line in lines(tmp_path)] == [8, 16]


def test_tensorboard_shows_samples_seen_and_repeated_steps_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, ("tensorboard",), 0, 40)
    train(tmp_path, ("tensorboard",), 16, 48, offset=1)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("loss")]
    assert [step for step, _ in found] == [8, 16, 24, 32, 40, 48]
    assert [value for _, value in found] == pytest.approx(
        [100 / s + (s > 16) for s in (8, 16, 24, 32, 40, 48)]
    )
    assert b'"seed": 3' in events.Tensors("plan/text_summary")[0].tensor_proto.string_val[0]
    assert len(lines(tmp_path)) == 6  # metrics.jsonl is written beside it


# in a process of its own: wandb starts a service, and nothing of it may be left
WANDB_RUN = """
import sys
from pathlib import Path
from capwright.pretrain.trackers import Trackers
out = Path(sys.argv[1])
for start, stop in ((0, 24), (16, 32)):
    with Trackers(out, ("wandb",), {"seed": 3}, start) as tracked:
        for seen in range(start + 8, stop + 1, 8):
            tracked.write(seen, {"loss": 100 / seen, "bad": float("nan")})
"""


def _records(path: Path) -> list[Any]:
    """A .wandb file is 7 bytes and blocks of 32 KiB; each piece has checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last piece of one
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def _processes_of(mark: str) -> list[str]:
    environments = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environments.append((folder / "environ").read_bytes())
            except OSError:
                continue
    return [e.decode(errors="replace") for e in environments if mark.encode() in e]


@pytest.mark.slow
def test_wandb_offline_goes_on_with_the_same_run_and_leaves_no_process(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    home = tmp_path / "home"
    home.mkdir()
    mark = f"HOME={home}"
    environment = {**os.environ, "WANDB_MODE": "offline", "HOME": str(home)}
    environment["PYTHONPATH"] = str(Path(trackers.__file__).parents[2])
    out = tmp_path / "run"
    subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(out)], env=environment, check=True, timeout=120
    )
    assert not _processes_of(mark)
    identity = (out / "wandb" / "capwright_run_id").read_text()
    files = sorted(out.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(files) == 2
    steps = []
    for path in files:
        records = _records(path)
        runs = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        assert runs[0].run_id == identity and runs[0].project == "capwright"
        assert {u.key: u.value_json for u in runs[0].config.update}["seed"] == "3"
        for record in records:
            if record.WhichOneof("record_type") == "history":
                items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
                assert float(items["loss"]) == 100 / float(items["samples_seen"])
                assert "bad" not in items
                steps.append(record.history.step.num)
    assert steps == [8, 16, 24, 24, 32]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_package_is_said(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        CapwrightError,
        match=rf"package {name} is not installed: `pip install 'capwright\[track\]'`",
    ):
        Trackers(tmp_path, (name,), PLAN, 0)


@pytest.mark.slow
def test_wandb_without_an_account_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    environment["PYTHONPATH"] = str(Path(trackers.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1
    assert "CapwrightError: wandb cannot start" in done.stderr
    assert "run `wandb login`, set WANDB_MODE=offline" in done.stderr
