"""Checkpoints that are found in order, damaged, or do not fit on the disk."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import zeros

from capwright.core.errors import CapwrightError
from capwright.models.towers import WEIGHTS_FILE
from capwright.pretrain import checkpoint, engine
from capwright.pretrain.checkpoint import STATE_FILE, Position
from capwright.pretrain.config import PretrainConfig


def write(folder: Path, samples: int, kept: int = 2) -> Path:
    return checkpoint.write(
        folder,
        {"exported": {"weight": zeros(4096)}},
        Position(samples_seen=samples),
        model_config={},
        preprocess={},
        tokenizer_folder=None,
        kept=kept,
    )


def test_the_newest_of_a_billion_samples_is_kept(tmp_path: Path) -> None:
    counts = [999_999_000, 1_000_000_000, 1_000_001_000]
    written = [write(tmp_path, samples) for samples in counts]
    (tmp_path / "samples_000000001.copy").mkdir()
    (tmp_path / "samples_000000001.copy" / STATE_FILE).touch()  # nobody's but the user's
    assert checkpoint.find(tmp_path) == written[1:]
    assert (tmp_path / "last").resolve() == written[-1]


def test_a_full_disk_while_weights_are_written(tmp_path: Path) -> None:
    good = write(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(CapwrightError, match=r"cannot write .*goes on from samples_000000001"):
            write(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.find(tmp_path) == [good]


@pytest.mark.parametrize("file", [WEIGHTS_FILE, STATE_FILE])
@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02torn", bytes(9), None], ids=["empty", "other", "zeros", "half"]
)
def test_a_torn_file_is_named(
    file: str,
    content: bytes | None,
    work: Path,
    tmp_path: Path,
    tiny_config: Callable[..., PretrainConfig],
) -> None:
    config = tiny_config(work, tmp_path, samples=16)
    made = engine.run(config)
    torn = made.checkpoint / file
    whole: Any = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2] if content is None else content)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(CapwrightError, match=r"samples_000000016 is damaged .*: delete it to go"):
        engine.run(config)
