"""The four commands in a row on a tiny corpus, through the real command line."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from capwright.cli import group

TINY_CAPTIONER = [
    "picture_size=64", "concepts.width=8", "concepts.steps=4", "decoder.width=16",
    "decoder.layers=1", "decoder.heads=2", "training.noisy_steps=2", "training.human_steps=2",
    "writing.sampled=1",
]  # fmt: skip
TINY_TOWER = ["picture_size=64", "tower.steps=4", "tower.width=8", "tower.hidden=8"]


def call(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(group, list(arguments))
    assert result.exit_code == 0, result.output
    summary: dict[str, object] = json.loads(result.stdout)
    return summary


def settings(values: list[str]) -> list[str]:
    return [argument for value in values for argument in ("--set", value)]


@pytest.mark.slow
def test_describe_fuse_score_select(corpus: Path, tmp_path: Path) -> None:
    place = [str(corpus), "--work", str(tmp_path / "work")]
    assert call("describe", *place, *settings(TINY_CAPTIONER))["captions"] == 96
    assert call("fuse", *place, *settings(TINY_TOWER))["pictures"] == 48
    assert call("score", *place, "--with", "clip", *settings(TINY_TOWER))["shards"] == 2
    assert call("select", *place, "--set", "keep_top=1")["pictures"] == 48
    assert call("select", *place, "--set", "keep_top=1")["shards_reused"] == 2


def test_a_users_fault_is_one_sentence_and_exit_code_2(corpus: Path, tmp_path: Path) -> None:
    place = [str(corpus), "--work", str(tmp_path / "work")]
    result = CliRunner().invoke(group, ["select", *place, "--set", "keep_tops=1"])
    assert result.exit_code == 2
    assert "unknown key 'keep_tops': did you mean 'keep_top'?" in result.stderr
    result = CliRunner().invoke(group, ["score", *place, "--model", str(tmp_path)])
    assert result.exit_code == 2
    assert "no checkpoint at" in result.stderr
