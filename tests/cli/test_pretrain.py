"""`capwright pretrain`: recipes by name and by path, settings, error texts."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from capwright.cli import group
from capwright.pretrain import engine, signals
from capwright.pretrain.config import PretrainConfig, PretrainSummary


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[PretrainConfig]:
    """The plans that reached the engine, which does nothing with them."""
    plans: list[PretrainConfig] = []

    def run(config: PretrainConfig, evaluators: object) -> PretrainSummary:
        assert evaluators == {}
        plans.append(config)
        return PretrainSummary(
            checkpoint=config.out / "checkpoints" / "samples_000000512",
            samples_seen=512,
            seconds=2.0,
            final_loss=1.5,
            samples_per_second=256.0,
        )

    monkeypatch.setattr(engine, "run", run)
    return plans


def call(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["pretrain", *arguments])


def test_a_named_recipe_with_settings(seen: list[PretrainConfig]) -> None:
    result = call(
        "scenes_clip", "--set", "augmentation.flip=true", "--set", "samples=512",
        "--set", "warmup_samples=0", "--set", "model=ViT-B-32", "--resume", "never",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples_per_second"] == 256.0
    (plan,) = seen
    assert (plan.samples, plan.model, plan.resume) == (512, "ViT-B-32", "never")
    assert plan.augmentation.flip is True
    assert [source.name for source in plan.captions] == ["selected", "alt"]


def test_a_recipe_file(seen: list[PretrainConfig], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from pathlib import Path\n"
        "from capwright.pretrain.config import PretrainConfig\n"
        "def config():\n"
        "    return PretrainConfig(out=Path('o'), work=Path('w'), seed=7)\n"
    )
    assert call(str(recipe)).exit_code == 0
    assert seen[0].seed == 7
    assert seen[0].resume == "auto"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scene_clip"], "recipe 'scene_clip' is unknown: did you mean 'scenes_clip'?"),
        (["absent.py"], "recipe 'absent.py' is not a file: give the path of a Python file"),
        (["scenes_clip", "--set", "lerning_rate=1"], "did you mean 'learning_rate'?"),
        (["scenes_clip", "--set", "precision=fp8"], "setting 'precision=fp8' has a wrong value"),
        (["scenes_clip", "--set", "batch_size=0"], "batch_size is 0: it must be 1 or more"),
        (["load"], "recipe 'load' has no function config()"),
        (["scenes_clip", "--eval", "dense"], "evaluator 'dense' is not understood"),
        (["scenes_clip", "--set", "ema=1"], "ema is 1.0: a momentum from 0 (none) to below 1"),
    ],
)
def test_faults_are_one_sentence(
    seen: list[PretrainConfig], arguments: list[str], message: str
) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not seen


def test_a_run_that_was_asked_to_stop_ends_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: PretrainConfig, evaluators: object) -> PretrainSummary:
        raise signals.Stopped(512, "samples_000000512")

    monkeypatch.setattr(engine, "run", run)
    result = call("scenes_clip")
    assert result.exit_code == 143
    assert "stopped by SIGTERM at 512 samples; samples_000000512 is written" in result.stderr
