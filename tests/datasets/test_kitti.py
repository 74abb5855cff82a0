import json
from pathlib import Path

import numpy as np

from capwright.datasets import kitti, load
from set_files import data, write_depth, write_picture

DRIVE = "2011_09_26_drive_0002_sync"
PICTURE = f"2011_09_26/{DRIVE}/image_02/data/0000000069.png"
DEPTH = f"{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png"
LIST = f"{PICTURE} {DEPTH} 721.5377\n{PICTURE.replace('69', '70')} None 721.5377\n"


def write(root: Path, stored: int = 256 * 20, depths: str = "data_depth_annotated/val") -> Path:
    (root / "eigen_test_files_with_gt.txt").write_text(LIST)
    write_picture(root / "raw" / PICTURE)
    write_depth(root / depths / DEPTH, stored)
    return root


def test_metres_and_pictures_without_ground_truth(tmp_path: Path) -> None:
    loaded = load("kitti", write(tmp_path))
    assert loaded.keys == (PICTURE.removesuffix(".png"),), "a line with None has no depth"
    assert (loaded.most_m, loaded.crops) == (80.0, ("garg", "kitti_eigen", "none"))
    item = loaded[0]
    assert (item.depth_HW.dtype, item.depth_HW[1, 1], item.depth_HW[0, 0]) == (np.float32, 20, 0)
    checked = data("check", "kitti", tmp_path)
    assert (checked.code, json.loads(checked.out)["items"]) == (0, 1)


def test_other_places_and_jpegs(tmp_path: Path) -> None:
    write(tmp_path, depths="gt_depth")
    (tmp_path / "raw" / PICTURE).unlink()
    write_picture(tmp_path / "input" / PICTURE.replace(".png", ".jpg"))
    assert float(load("kitti", tmp_path)[0].depth_HW[2, 2]) == 20.0


def test_millimetres_are_seen(tmp_path: Path) -> None:
    (problem,) = kitti.check(write(tmp_path, stored=30_000))
    assert "the usual depth is 117.188 m with 256 stored units a metre" in problem
    assert "another unit" in problem


def test_a_lost_list_and_lost_files_are_seen(tmp_path: Path) -> None:
    assert "the list of Eigen's split, is missing" in kitti.check(tmp_path)[0]
    (write(tmp_path) / "raw" / PICTURE).unlink()
    assert kitti.check(tmp_path)[0].startswith("1 files are missing, first")
    (tmp_path / "eigen_test_files_with_gt.txt").write_text("one.png\n")
    assert "has the line 'one.png': each names two files" in kitti.check(tmp_path)[0]
