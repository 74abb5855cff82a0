"""Expert labels from sidecars to memory maps, in the order of the index."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from capwright.core.errors import CapwrightError
from capwright.core.run_folder import claim
from capwright.corpus.sidecars import write_sidecar
from capwright.pretrain import labels as store
from expert_labels import encoded, truth, write_labels


def test_labels_come_back_in_the_order_of_the_index(tmp_path: Path) -> None:
    index = write_labels(tmp_path)
    index = index.take([5, 0, 1, 4, 2])  # any rows
    loaded = store.load_labels(tmp_path / "captions" / "experts", index, tmp_path / "labels")
    loaded = pickle.loads(pickle.dumps(loaded))
    found = loaded(np.arange(5))
    for at, i in ((0, 5), (1, 0), (4, 2)):
        assert np.array_equal(found["segmentation"][at], truth(i)["segmentation"])
        assert np.allclose(found["depth"][at], truth(i)["depth"], atol=2e-3, equal_nan=True)
        assert np.allclose(found["normals"][at] / 127, truth(i)["normals"], atol=1 / 200)
        assert not found["normals"][at][:, 0, 0].any()
    for at in (2, 3):  # failed, and missing
        assert (found["segmentation"][at] == 255).all()
        assert np.isnan(found["depth"][at]).all()
        assert not found["normals"][at].any()


def test_a_used_store_pickles_to_names_and_the_cache_is_made_once(tmp_path: Path) -> None:
    index = write_labels(tmp_path)
    folder, cache = tmp_path / "captions" / "experts", tmp_path / "labels"
    loaded = store.load_labels(folder, index, cache)
    loaded(np.arange(6))
    assert len(pickle.dumps(loaded)) < 2000
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*.npy")}
    store.load_labels(folder, index, cache)
    assert before == {path: path.stat().st_mtime_ns for path in cache.glob("*.npy")}
    assert len(before) == 3
    rows = [{"key": str(i), "source": "experts", "text": "", **encoded(i + 7, store.TASKS)}
            for i in range(3)]  # fmt: skip
    fields = [field for task in store.TASKS for field in store.FIELDS[task]]
    write_sidecar(folder, "s0", rows, fields)  # labelled again, as by --retry-failed
    again = store.load_labels(folder, index, cache)(np.arange(6))
    assert np.array_equal(again["segmentation"][1], truth(8)["segmentation"])


def test_relative_depth_is_scaled_to_its_picture(tmp_path: Path) -> None:
    index = write_labels(tmp_path, metric=False)
    folder = tmp_path / "captions" / "experts"
    depth = store.load_labels(folder, index, tmp_path / "labels", ("depth",))(np.arange(1))["depth"]
    true = truth(0)["depth"]
    low, high = np.nanmin(true), np.nanmax(true)
    assert np.allclose(depth[0], (true - low) / (high - low), atol=1e-3, equal_nan=True)


def test_missing_labels_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "captions" / "experts"
    with pytest.raises(CapwrightError, match="has no labels: run `capwright experts CORPUS"):
        store.check_tasks(folder, store.TASKS)
    index = write_labels(tmp_path, tasks=("segmentation", "depth"))
    with pytest.raises(CapwrightError, match=r"none for normals: set pseudo_labels.normals=0"):
        store.load_labels(folder, index, tmp_path / "labels")
    (folder / "s1.parquet").unlink()
    with pytest.raises(CapwrightError, match=r"no labels for the shards s1 \(1 of 2 are missing\)"):
        store.load_labels(folder, index, tmp_path / "labels", ("depth",))
    other = tmp_path / "captions" / "describe"
    claim(other, {"backend": "small"})
    with pytest.raises(CapwrightError, match="holds captions, not labels"):
        store.check_tasks(other, ("depth",))


def test_encoding_keeps_a_picture_without_any_depth() -> None:
    columns = store.encode_depth(np.full((4, 4), np.nan))
    assert np.isnan(store.decode("depth", columns)).all()
    json.dumps({name: value for name, value in columns.items() if name != "depth"})
