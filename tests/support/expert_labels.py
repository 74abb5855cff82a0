"""Sidecars of expert labels, written without experts."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from capwright.core.run_folder import claim
from capwright.corpus.index import load_index
from capwright.corpus.sidecars import write_sidecar
from capwright.pretrain import labels as store


def write_labels(work: Path, *, metric: bool = True, tasks: Any = store.TASKS) -> pa.Table:
    """Two shards of three pictures; the label of row i is a function of i, row 1 has failed and
    row 4 has no row in its sidecar."""
    folder = work / "captions" / "experts"
    plan = {
        "labels": list(tasks), "size": 4, "classes": list("abcde"),
        "depth_kind": store.METRIC if metric else store.RELATIVE,
    }  # fmt: skip
    claim(folder, plan)
    fields = [field for task in tasks for field in store.FIELDS[task]]
    for shard in range(2):
        rows: list[dict[str, Any]] = []
        for i in range(3 * shard, 3 * shard + 3):
            row: dict[str, Any] = {"key": str(i), "source": "experts", "text": ""}
            if i == 1:
                row |= {"keep": False, "reason": "failed: unreadable"}
            else:
                row |= encoded(i, tasks)
            if i != 4:
                rows.append(row)
        write_sidecar(folder, f"s{shard}", rows[::-1], fields)  # in any order
    return pa.table({"shard": ["s0"] * 3 + ["s1"] * 3, "key": [str(i) for i in range(6)]})


def truth(i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    normals = rng.normal(size=(3, 4, 4))
    normals[:, 0, 0] = 0
    length = np.linalg.norm(normals, axis=0)
    depth = rng.uniform(-1, 3, (4, 4))
    depth[1, 1] = np.nan
    return {
        "segmentation": rng.integers(0, 5, (4, 4)).astype(np.uint8),
        "depth": depth,
        "normals": normals / np.where(length, length, 1),
    }


def encoded(i: int, tasks: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for task in tasks:
        made |= getattr(store, f"encode_{task}")(truth(i)[task])
    return made


def label_corpus(work: Path) -> None:
    """Labels for the tiny corpus: the colour is the class, brightness the depth."""
    folder = work / "captions" / "experts"
    plan = {"labels": ["segmentation", "depth"], "size": 16, "classes": list("rgby"),
            "depth_kind": store.METRIC}  # fmt: skip
    claim(folder, plan)
    fields = [*store.FIELDS["segmentation"], *store.FIELDS["depth"]]
    index = load_index(work)
    for shard in index["shard"].unique().to_pylist():
        rows = []
        for key, of in zip(index["key"].to_pylist(), index["shard"].to_pylist(), strict=True):
            if of == shard:
                colour = int(key) % 4  # of conftest's COLOURS
                rows.append(
                    {"key": key, "source": "experts", "text": ""}
                    | store.encode_segmentation(np.full((16, 16), colour, np.uint8))
                    | store.encode_depth(np.log(np.full((16, 16), 1.0 + colour)))
                )
        write_sidecar(folder, shard, rows, fields)
