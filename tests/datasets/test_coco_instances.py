import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from capwright.core.errors import CapwrightError
from capwright.datasets import coco_instances, load
from capwright.datasets.coco_masks import decode_mask
from set_files import data, write_picture

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}]  # not in order, with a gap
SQUARE = [2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]


def write(root: Path, **change: Any) -> Path:
    for name in ("000000000139.jpg", "000000000285.jpg"):
        write_picture(root / "val2017" / name)
    images = [
        {"id": 139, "file_name": "000000000139.jpg", "width": 8, "height": 6},
        {"id": 285, "file_name": "000000000285.jpg", "width": 8, "height": 6},
    ]
    crowd = {"size": [6, 8], "counts": [0, 6, 42]}
    things = [
        {"id": 1, "image_id": 139, "category_id": 3, "bbox": [2, 1, 4, 3], "iscrowd": 0}
        | {"segmentation": [SQUARE], "area": 12}
        | change,
        {"id": 2, "image_id": 139, "category_id": 1, "bbox": [0, 0, 1, 6], "iscrowd": 1}
        | {"segmentation": crowd, "area": 6},
    ]
    content = {"images": images, "annotations": things, "categories": CATEGORIES}
    path = root / "annotations/instances_val2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return root


def test_objects_boxes_and_masks(tmp_path: Path) -> None:
    loaded = load("coco-instances", write(tmp_path))
    assert (loaded.classes, loaded.category_ids) == (("person", "car"), (1, 3))
    item = loaded[0]
    assert (item.key, item.image_id, item.image.size) == ("000000000139", 139, (8, 6))
    assert item.labels_N.tolist() == [1, 0] and item.crowd_N.tolist() == [False, True]
    assert item.boxes_N4.tolist() == [[2, 1, 6, 4], [0, 0, 1, 6]]
    assert (item.boxes_N4.dtype, item.masks_NHW.dtype) == (np.float32, np.bool_)
    expected = np.zeros((2, 6, 8), bool)
    expected[0, 1:4, 2:6] = True
    expected[1, :, 0] = True
    np.testing.assert_array_equal(item.masks_NHW, expected)
    assert loaded.annotations["annotations"][0]["id"] == 1


def test_a_picture_without_objects_is_kept(tmp_path: Path) -> None:
    loaded = load("coco-instances", write(tmp_path))
    item = loaded[1]
    assert len(loaded) == 2
    assert (item.boxes_N4.shape, item.masks_NHW.shape) == ((0, 4), (0, 6, 8))


def test_compressed_run_lengths_equal_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        for height, width in ((1, 1), (7, 5), (120, 90)):
            mask_HW = rng.random((height, width)) < density
            runs = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
            np.testing.assert_array_equal(decode_mask(runs, height, width), mask_HW)
            runs["counts"] = runs["counts"].decode()
            np.testing.assert_array_equal(decode_mask(runs, height, width), mask_HW)


def test_several_polygons_are_one_mask_and_a_line_is_none() -> None:
    mask_HW = decode_mask([SQUARE, [0, 0, 1, 0, 1, 1, 0, 1]], 6, 8)
    assert mask_HW[0, 0] and mask_HW[2, 3] and mask_HW.sum() == 13
    assert not decode_mask([[1, 1, 2, 2]], 6, 8).any()


def test_masks_of_other_pictures_are_refused() -> None:
    with pytest.raises(CapwrightError, match="a mask is 9 × 6, but its picture 8 × 6"):
        decode_mask({"size": [6, 9], "counts": [54]}, 6, 8)
    with pytest.raises(CapwrightError, match="runs cover 47 pixels, but its picture has 48"):
        decode_mask({"size": [6, 8], "counts": [40, 7]}, 6, 8)


def test_a_good_copy_has_no_problem(tmp_path: Path) -> None:
    checked = data("check", "coco-instances", write(tmp_path))
    facts = {"name": "coco-instances", "split": "val2017", "items": 2, "classes": 2}
    assert (checked.code, json.loads(checked.out)) == (0, facts)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"category_id": 90}, "1 annotations have a category that the json does not list"),
        ({"image_id": 1}, "1 annotations have a picture that the json does not list"),
        ({"bbox": [2, 1, 90, 3]}, "1 annotations have a box out of its picture"),
        ({"segmentation": None}, "1 annotations have no segmentation: each needs a box and a mask"),
        ({"segmentation": []}, "1 annotations have no segmentation: each needs a box and a mask"),
        ({"bbox": None}, "1 annotations have no bbox: each needs a box and a mask"),
    ],
)
def test_wrong_annotations_are_seen(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    (found,) = coco_instances.check(write(tmp_path, **change))
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("segmentation", "an annotation of 000000000139.jpg has no segmentation: each needs"),
        ("category_id", "an annotation of 000000000139.jpg has a category that the json does not"),
    ],
)
def test_an_item_with_a_wrong_annotation_says_so(tmp_path: Path, name: str, problem: str) -> None:
    folder = write(tmp_path)
    path = folder / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][0][name]
    path.write_text(json.dumps(content))
    with pytest.raises(CapwrightError, match=problem):
        load("coco-instances", folder)[0]
    assert len(coco_instances.check(folder)) == 1


def test_an_unreadable_picture_is_seen(tmp_path: Path) -> None:
    broken = write(tmp_path) / "val2017/000000000139.jpg"
    broken.write_bytes(b"<html>not found</html>")
    checked = data("check", "coco-instances", tmp_path)
    assert checked.code == 2 and f"{broken} is not a readable picture" in checked.err
    with pytest.raises(CapwrightError, match="is not a readable picture"):
        load("coco-instances", tmp_path)[0]


def test_lost_and_resized_pictures_are_seen(tmp_path: Path) -> None:
    folder = write(tmp_path)
    write_picture(folder / "val2017/000000000139.jpg", size=(4, 3))
    (found,) = coco_instances.check(folder)
    assert "is 4 × 3, but the annotations say 8 × 6" in found
    with pytest.raises(CapwrightError, match="4 × 3, but the annotations say 8 × 6"):
        load("coco-instances", folder)[0]
    (folder / "val2017/000000000139.jpg").unlink()
    assert coco_instances.check(folder)[0].startswith("1 of 2 pictures are missing")


def test_a_missing_json_is_named(tmp_path: Path) -> None:
    assert "annotations_trainval2017.zip" in coco_instances.check(tmp_path)[0]
