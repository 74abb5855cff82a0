import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from capwright.core.errors import CapwrightError
from capwright.datasets import load, nyuv2
from set_files import data, write_depth, write_picture

H, W = 12, 16


def write_mat(root: Path, metres: float = 2.5) -> Path:
    """Four pictures as MATLAB stores them, axes reversed; the second and the fourth are to test."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 3, W, H), dtype=np.uint8)
    depths = (metres * (1 + rng.random((4, W, H)))).astype(np.float32)
    with h5py.File(root / nyuv2.MAT, "w") as content:
        content["images"], content["depths"] = images, depths
    splits = {"testNdxs": np.array([[2], [4]]), "trainNdxs": np.array([[1], [3]])}
    savemat(root / "splits.mat", splits)
    return root


def test_the_mat_is_read_in_the_right_order_of_axes(tmp_path: Path) -> None:
    import h5py

    loaded = load("nyuv2", write_mat(tmp_path))
    assert (loaded.keys, loaded.crops[0]) == (("0002", "0004"), "eigen")
    assert loaded.most_m == 10.0
    item = loaded[1]
    with h5py.File(tmp_path / nyuv2.MAT) as content:
        depths, images = content["depths"][3], content["images"][3]
    assert item.depth_HW.shape == (H, W) and item.image.size == (W, H)
    assert item.depth_HW[5, 9] == depths[9, 5]
    assert np.asarray(item.image)[5, 9].tolist() == images[:, 9, 5].tolist()
    assert load("nyuv2", tmp_path, "train").keys == ("0001", "0003")
    assert nyuv2.check(tmp_path) == []


def test_a_mat_in_millimetres_is_seen(tmp_path: Path) -> None:
    (problem,) = nyuv2.check(write_mat(tmp_path, metres=2500.0))
    assert "the depths are in another unit" in problem


def test_splits_of_another_file_are_seen(tmp_path: Path) -> None:
    write_mat(tmp_path)
    splits = {"testNdxs": np.array([[1449]]), "trainNdxs": np.array([[1]])}
    savemat(tmp_path / "splits.mat", splits)
    assert (
        "has 4 pictures and 4 depths, but splits.mat names number 1449"
        in (nyuv2.check(tmp_path)[0])
    )
    (tmp_path / "splits.mat").unlink()
    assert "which 654 pictures" in nyuv2.check(tmp_path)[0]


def write_official(root: Path, stored: int = 2500) -> Path:
    base = root / "official_splits/test/bathroom"
    write_picture(base / "rgb_00045.jpg")
    write_depth(base / "sync_depth_00045.png", stored)
    return root


def test_the_official_splits_are_millimetres(tmp_path: Path) -> None:
    loaded = load("nyuv2", write_official(tmp_path))
    item = loaded[0]
    assert item.key == "bathroom/rgb_00045"
    assert (item.depth_HW.dtype, item.depth_HW[1, 1]) == (np.float32, np.float32(2.5))
    assert item.depth_HW[0, 0] == 0, "unknown stays 0"
    checked = data("check", "nyuv2", tmp_path)
    facts = {"name": "nyuv2", "split": "test", "items": 1}
    assert (checked.code, json.loads(checked.out)) == (0, facts)


def test_the_folder_of_densedepth(tmp_path: Path) -> None:
    write_picture(tmp_path / "nyu2_test/00000_colors.png")
    write_depth(tmp_path / "nyu2_test/00000_depth.png", 3000)
    loaded = load("nyuv2", tmp_path)
    assert (len(loaded), float(loaded[0].depth_HW[1, 1])) == (1, 3.0)
    assert nyuv2.check(tmp_path) == []
    assert "neither" in nyuv2.check(tmp_path, "train")[0]


def test_another_unit_and_lost_depths_are_seen(tmp_path: Path) -> None:
    folder = write_official(tmp_path, stored=12_000)
    assert "the usual depth is 12 m with 1000 stored units a metre" in nyuv2.check(folder)[0]
    (folder / "official_splits/test/bathroom/sync_depth_00045.png").unlink()
    assert nyuv2.check(folder)[0].startswith("1 files are missing")


def test_eight_bits_and_other_sizes_are_seen(tmp_path: Path) -> None:
    folder = write_official(tmp_path)
    path = folder / "official_splits/test/bathroom/sync_depth_00045.png"
    write_depth(path, 2500, shape=(3, 4))
    assert "is 4 × 3, but its picture is 8 × 6" in nyuv2.check(folder)[0]
    with pytest.raises(CapwrightError, match="is 4 × 3, but its picture is 8 × 6"):
        load("nyuv2", folder)[0]
    write_picture(path)
    assert "a depth picture has 16 bits a pixel" in nyuv2.check(folder)[0]
