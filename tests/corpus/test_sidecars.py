"""Sidecars join by key, keep dropped captions on disk, and say which shard is missing."""

from pathlib import Path

import pyarrow as pa
import pytest

from capwright.core.errors import CapwrightError
from capwright.corpus.sidecars import captions_of, has_sidecar, read_sidecars, write_sidecar

INDEX = pa.table(
    {
        "key": ["1", "2", "1"],
        "shard": ["a", "a", "b"],
        "text": ["alt one", "", "alt three"],
        "more_texts": [["again"], [], None],
    }
)


def test_join_is_per_shard_and_in_file_order(tmp_path: Path) -> None:
    write_sidecar(
        tmp_path,
        "a",
        [
            {"key": "2", "source": "x", "text": "second"},
            {"key": "1", "source": "x", "text": "dropped", "keep": False, "reason": "alt junk"},
            {"key": "1", "source": "y", "text": "first"},
            {"key": "1", "source": "x", "text": "next"},
            {"key": "2", "source": "x", "text": ""},
        ],
    )
    with pytest.raises(CapwrightError, match="has no captions for b: run the stage"):
        captions_of(INDEX, tmp_path)
    assert has_sidecar(tmp_path, "a") and not has_sidecar(tmp_path, "b")
    write_sidecar(tmp_path, "b", [{"key": "1", "source": "x", "text": "other shard"}])
    assert captions_of(INDEX, tmp_path) == [["first", "next"], ["second"], ["other shard"]]
    assert captions_of(INDEX, tmp_path, ("y",)) == [["first"], [], []]
    assert captions_of(INDEX, None) == [["alt one", "again"], [], ["alt three"]]
    assert read_sidecars(tmp_path)["reason"].to_pylist()[1] == "alt junk"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid):
        write_sidecar(
            tmp_path, "a", [{"key": "1", "source": "x", "text": "t", "seed": "no number"}]
        )
    assert list(tmp_path.iterdir()) == []
