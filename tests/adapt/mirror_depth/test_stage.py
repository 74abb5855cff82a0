"""The stage: files, going on, exactness after a break, what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capwright.adapt.mirror_depth import Config, Summary, learned_model, run, stage
from capwright.adapt.mirror_depth.config import ARMS, CONSTANT, DEPTHCLIP, MIRROR
from capwright.core.errors import CapwrightError
from capwright.datasets.sets import DepthSet
from capwright.evaluate.outcomes import read_outcomes
from capwright.evaluate.results import read_results
from capwright.evaluate.transfer.depth import Scoring
from capwright.pretrain import signals
from pixel_sets import depth_set
from toy_scenes import write_scenes


@pytest.fixture
def scenes(plan: Config) -> Config:
    for folder in (plan.data, plan.test_data):
        assert folder is not None
        write_scenes(folder)
    return plan


def test_every_arm_and_seed_has_its_numbers(scenes: Config) -> None:
    summary = run(replace(scenes, seeds=(0, 1)))
    assert list(summary.arms) == list(ARMS)
    results = read_results(scenes.out / "results.json")
    arms = [(result.options["arm"], result.seed) for result in results]
    assert arms == [*((arm, 0) for arm in ARMS), *((arm, 1) for arm in ARMS[:-1])]
    assert set(read_outcomes(scenes.out / "results.npz")) == set(range(9))
    for result in results:
        assert result.protocol.name == "transfer-depth" and result.options["pictures"] == 8
        assert all(np.isfinite(list(map(float, result.metrics.values()))))  # type: ignore[arg-type]
    table = (scenes.out / "results.md").read_text().splitlines()
    assert len(table) == 2 + len(ARMS)
    assert table[2].startswith(f"| `mirror` | {summary.trained_parameters[MIRROR]:,} |")
    assert " ± " in table[3] and " to " in table[3]
    assert summary.trained_parameters[DEPTHCLIP] == 0


def test_arms_and_seeds_can_be_added_and_nothing_is_done_twice(
    scenes: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(replace(scenes, arms=(CONSTANT,)))
    done: list[tuple[int, str]] = []
    measure_arm = stage.measure_arm

    def noted(config: Config, train: DepthSet, test: DepthSet, seed: int, arm: str) -> None:
        done.append((seed, arm))
        measure_arm(config, train, test, seed, arm)

    monkeypatch.setattr(stage, "measure_arm", noted)
    second = run(replace(scenes, arms=(MIRROR, CONSTANT), seeds=(0, 1)))
    assert done == [(0, MIRROR), (1, MIRROR), (1, CONSTANT)]
    assert list(run(replace(scenes, arms=(CONSTANT,))).arms) == [MIRROR, CONSTANT]  # stay
    assert len(done) == 3
    assert first.trained_parameters[CONSTANT] == second.trained_parameters[CONSTANT]
    with pytest.raises(CapwrightError, match=r"made with another plan .*tokens 5 -> 6"):
        run(replace(scenes, tokens=6))


def test_a_run_that_was_stopped_ends_as_an_unbroken_one(
    scenes: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(scenes, arms=(MIRROR,))
    whole = run(one)
    other = replace(one, out=tmp_path / "other")
    with monkeypatch.context() as patched:
        asked = iter([False, False, True])
        real = signals.Asked.__bool__
        patched.setattr(signals.Asked, "__bool__", lambda self: next(asked, True) or real(self))
        with pytest.raises(signals.Stopped):
            run(other)
    states = [torch.load(p / "0/mirror/state.pt", weights_only=True) for p in (one.out, other.out)]
    assert states[1]["step"] < states[0]["step"]
    assert run(other).arms == whole.arms
    state = torch.load(other.out / "0/mirror/state.pt", weights_only=True)["module"]
    assert all(torch.equal(state[name], value) for name, value in states[0]["module"].items())


def test_the_state_holds_what_learned_and_no_clip(scenes: Config) -> None:
    run(replace(scenes, arms=(MIRROR,)))
    state = torch.load(scenes.out / "0/mirror/state.pt", weights_only=True)["module"]
    assert "head.condition.texts.prefix_MD" in state
    assert all(name.startswith("head.") for name in state)


def test_what_was_learned_is_loaded_again(scenes: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    images, said = torch.randn(2, 3, 30, 32), {}
    measure = stage.measure

    def noted(model: Any, *others: Any) -> Any:
        with torch.no_grad():
            said[len(said)] = model.eval()(images)
        return measure(model, *others)

    monkeypatch.setattr(stage, "measure", noted)
    run(replace(scenes, arms=(MIRROR, DEPTHCLIP)))
    for number, arm in enumerate((MIRROR, DEPTHCLIP)):
        with torch.no_grad():
            assert torch.equal(learned_model(scenes, 0, arm)(images), said[number])
    with pytest.raises(CapwrightError, match=r"constant/results\.json does not exist"):
        learned_model(scenes, 0, CONSTANT)


def test_learning_lowers_the_error(scenes: Config) -> None:
    longer = replace(scenes.schedule, steps=50, learning_rate=1e-2, batch=8)

    def error(schedule: Any, out: str) -> float:
        config = replace(scenes, arms=(MIRROR,), schedule=schedule, out=scenes.out / out)
        found = run(config).arms[MIRROR]["absrel"]
        assert found is not None
        return found

    few, many = error(scenes.schedule, "few"), error(longer, "many")
    assert many < 0.5 * few and many < 0.5


def test_the_usual_depth_is_the_geometric_mean_of_what_is_known() -> None:
    toys = depth_set([(16, 16), (32, 16)])
    known = np.concatenate([toys[number].depth_HW[1:].ravel() for number in (0, 1)])
    inside = known[(known > 2) & (known < 6)].astype(np.float64)
    caps = Scoring(least_m=2.0, most_m=6.0, crop="none")
    found = stage.usual_depth(toys, range(2), caps)
    assert found == pytest.approx(float(np.exp(np.log(inside).mean())), rel=1e-6)
    assert stage.usual_depth(toys, range(2), Scoring(least_m=99, most_m=100, crop="none")) is None


def unknown_depths(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """The toys' depths times `scale`, in place of the set."""
    toys = depth_set([(32, 32)] * 4)

    def read(index: int) -> Any:
        return replace(toys[index], depth_HW=toys[index].depth_HW * scale)

    pictures = replace(toys, read=read)
    monkeypatch.setattr(stage, "depth_set", lambda *_: pictures)


def test_no_known_depth(plan: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown_depths(monkeypatch, 0.0)
    with pytest.raises(CapwrightError, match=r"none of 4 pictures of toys .* has any known depth"):
        run(replace(plan, arms=(MIRROR,)))
    with pytest.raises(CapwrightError, match="none of the 4 test pictures of toys has a known"):
        run(replace(plan, arms=(DEPTHCLIP,)))


def test_depths_beyond_the_caps_are_no_loss_and_no_nan(
    plan: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown_depths(monkeypatch, 1000.0)
    with pytest.raises(CapwrightError, match="none of the 4 test pictures of toys has a known"):
        run(replace(plan, arms=(CONSTANT,)))
    log = (plan.out / "0/constant/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in log] == [0.0]


def test_pictures_smaller_than_a_patch(plan: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: DepthSet = depth_set([(5, 3)] * 4)
    monkeypatch.setattr(stage, "depth_set", lambda *_: pictures)
    summary: Summary = run(plan)
    assert all(np.isfinite(list(map(float, row.values()))).all() for row in summary.arms.values())  # type: ignore[arg-type]


def test_a_set_without_depths(plan: Config, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="no data set is called 'nyu'"):
        run(replace(plan, dataset="nyu"))
    for name in ("cat", "dog"):
        folder = tmp_path / "sorted" / "train" / name
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"")
    sorted_set = replace(
        plan, dataset="imagenet", data=tmp_path / "sorted", test_split="train", out=tmp_path / "o"
    )
    with pytest.raises(CapwrightError, match="imagenet has no depths: choose nyuv2, kitti"):
        run(sorted_set)
