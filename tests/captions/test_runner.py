from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from capwright.captions.runner import run_stage, shard_seed, stage_folder
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index
from capwright.corpus.sidecars import read_sidecars


def caption(table: pa.Table) -> list[dict[str, Any]]:
    shard = table["shard"][0].as_py()
    return [
        {
            "key": key,
            "source": "test",
            "text": f"{key} {shard_seed(0, shard)}",
            "keep": i % 2 == 0,
            "reason": "" if i % 2 == 0 else "odd",
        }
        for i, key in enumerate(table["key"].to_pylist())
    ]


def test_a_killed_stage_goes_on_and_writes_the_same_files(work: Path) -> None:
    index = load_index(work)
    whole = run_stage(index, stage_folder(work, "whole"), {"a": 1}, caption)

    def killed(table: pa.Table) -> list[dict[str, Any]]:
        if table["shard"][0].as_py() == "00001":
            raise KeyboardInterrupt
        return caption(table)

    cut = stage_folder(work, "cut")
    with pytest.raises(KeyboardInterrupt):
        run_stage(index, cut, {"a": 1}, killed)
    resumed = run_stage(index, cut, {"a": 1}, caption)
    assert (whole.shards_reused, resumed.shards_reused) == (0, 1)
    assert read_sidecars(cut).equals(read_sidecars(stage_folder(work, "whole")))


def test_the_summary_counts_all_shards(work: Path) -> None:
    summary = run_stage(load_index(work), stage_folder(work, "count"), {}, caption)
    assert (summary.pictures, summary.captions, summary.kept) == (48, 48, 24)
    assert summary.reasons == {"odd": 24}


def test_another_plan_is_refused_with_the_difference(work: Path) -> None:
    folder = stage_folder(work, "plan")
    run_stage(load_index(work), folder, {"a": 1}, caption)
    with pytest.raises(CapwrightError, match=r"another plan .*a 1 -> 2"):
        run_stage(load_index(work), folder, {"a": 2}, caption)


def test_another_corpus_is_refused(work: Path) -> None:
    folder = stage_folder(work, "corpus")
    index = load_index(work)
    run_stage(index, folder, {}, caption)
    with pytest.raises(CapwrightError, match=r"another plan .*corpus"):
        run_stage(index.slice(1), folder, {}, caption)


def test_seeds_differ_by_shard_and_seed() -> None:
    seeds = {shard_seed(0, "a"), shard_seed(0, "b"), shard_seed(1, "a")}
    assert len(seeds) == 3
    assert shard_seed(0, "a") == shard_seed(0, "a")
