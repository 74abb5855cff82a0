"""What goes with a run: averaged weights, evaluators, trackers, initial weights, a full disk."""

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from capwright.core.errors import CapwrightError
from capwright.pretrain import checkpoint, engine
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.ema import AveragedWeights

Plan = Callable[..., PretrainConfig]
WEIGHTS = "open_clip_model.safetensors"


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_average_is_the_formula() -> None:
    module = torch.nn.Linear(2, 1, bias=False)
    average = AveragedWeights(module, 0.3)
    expected = module.weight.detach().clone().double()
    for step in range(8):
        with torch.no_grad():
            module.weight += 1.0
        average.update(step)
        momentum = min(0.3, (1 + step) / (10 + step))
        expected = momentum * expected + (1 - momentum) * module.weight.detach().double()
    assert torch.allclose(average.state_dict()["weight"].double(), expected, atol=1e-6)


def test_a_checkpoint_holds_the_average_and_the_run_goes_on_from_the_weights(
    work: Path, tmp_path: Path, tiny_config: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.run(tiny_config(work, tmp_path / "whole", ema=0.9))
    plain = engine.run(tiny_config(work, tmp_path / "plain"))
    state = torch.load(whole.checkpoint / checkpoint.STATE_FILE, weights_only=True)
    weights = load_file(plain.checkpoint / WEIGHTS)
    exported = load_file(whole.checkpoint / WEIGHTS)
    assert all(torch.equal(state["model"][name], weights[name]) for name in weights)
    assert not torch.equal(exported["visual.proj"], weights["visual.proj"])

    broken = tiny_config(work, tmp_path / "broken", ema=0.9)
    with monkeypatch.context() as patched:
        patched.setattr(engine._Run, "_due", lambda self, seen: seen == 24)
        step = engine._Run._step
        patched.setattr(
            engine._Run,
            "_step",
            lambda self, number, batch, **o: (
                (pytest.exit("never") if number > 4 else step(self, number, batch, **o))
                if number != 4
                else (_ for _ in ()).throw(KeyboardInterrupt)
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            engine.run(broken)
    again = load_file(engine.run(broken).checkpoint / WEIGHTS)
    assert all(torch.equal(again[name], exported[name]) for name in exported)


def test_evaluators_see_every_checkpoint_and_change_nothing(
    work: Path, tmp_path: Path, tiny_config: Plan, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def evaluator(path: Path) -> Mapping[str, float]:
        torch.rand(3)  # what it draws plays no part
        seen.append(path.name)
        return {"size": float(len(load_file(path / WEIGHTS)))}

    summary = engine.run(tiny_config(work, tmp_path / "run"), {"tensors": evaluator})
    assert seen == [f"samples_{n:09d}" for n in (16, 32, 48)]
    lines = [line for line in metrics(tmp_path / "run") if "tensors/size" in line]
    assert [line["samples_seen"] for line in lines] == [16, 32, 48]
    assert all(line["evaluation_seconds"] >= 0 for line in lines)
    assert "evaluation  tensors/size" in capfd.readouterr().err
    plain = load_file(engine.run(tiny_config(work, tmp_path / "plain")).checkpoint / WEIGHTS)
    assert all(torch.equal(plain[k], v) for k, v in load_file(summary.checkpoint / WEIGHTS).items())
    assert 0 < summary.evaluation_seconds < 60


def test_a_run_begins_with_given_weights_and_keeps_a_frozen_tower(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    first = engine.run(tiny_config(work, tmp_path / "first"))
    config = tiny_config(
        work, tmp_path / "second", init=str(first.checkpoint), freeze=("text",), samples=8,
        warmup_samples=0,
    )  # fmt: skip
    second = engine.run(config)
    before, after = load_file(first.checkpoint / WEIGHTS), load_file(second.checkpoint / WEIGHTS)
    for name in before:
        frozen = name.startswith("text.")
        assert torch.equal(before[name], after[name]) == frozen, name
    assert torch.allclose(before["visual.proj"], after["visual.proj"], atol=0.02)
    assert metrics(config.out)[0]["loss"] < metrics(tmp_path / "first")[0]["loss"]
    names = {path.name for path in second.checkpoint.iterdir()}
    assert "tokenizer.json" in names  # the vocabulary of the weights came along


def test_a_full_disk_leaves_the_last_good_checkpoint(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    """Files may not grow beyond what the first checkpoint takes, as on a disk that fills up."""
    config = tiny_config(work, tmp_path / "run")
    engine.run(tiny_config(work, tmp_path / "measured", samples=16))
    size = (tmp_path / "measured/checkpoints/last" / checkpoint.STATE_FILE).stat().st_size
    found = checkpoint.write

    def fill(*arguments: Any, **options: Any) -> Path:
        if (config.out / "checkpoints").exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
        return found(*arguments, **options)

    checkpoint.write = fill
    try:
        with pytest.raises(CapwrightError, match=r"cannot write checkpoint .*samples_000000032"):
            engine.run(config)
    finally:
        checkpoint.write = found
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (good,) = checkpoint.find(config.out / "checkpoints")
    assert good.name == "samples_000000016"
    assert not list((config.out / "checkpoints").glob("*.partial"))
    assert engine.run(config).samples_seen == 48


def test_profile_prints_the_rate_and_keeps_nothing(
    work: Path, tmp_path: Path, tiny_config: Plan
) -> None:
    text = engine.profile(tiny_config(work, tmp_path / "run", precision="fp32"), steps=2)
    ratio = float(text.split("ratio")[1].split()[0])
    assert 0 <= ratio < 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_tensorboard_gets_the_numbers(work: Path, tmp_path: Path, tiny_config: Plan) -> None:
    engine.run(tiny_config(work, tmp_path, trackers=("tensorboard",), samples=16))
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path))


def test_recipes_are_read_without_torch() -> None:
    code = (
        "import sys; import capwright.pretrain.config; "
        "sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
