import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from capwright.core.errors import CapwrightError
from capwright.datasets import load, pascal_context, pascal_context59, pascal_context60
from set_files import HEIGHT, WIDTH, data, label_of, write_label, write_picture

KEYS = {"val": "2008_000002", "train": "2008_000003"}


def region(image: int, category: int, rows: slice) -> dict[str, object]:
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask_HW[rows] = 1
    runs = coco_mask.encode(mask_HW)
    runs["counts"] = runs["counts"].decode()
    return {"image_id": image, "category_id": category, "segmentation": runs}


def write_json(root: Path) -> Path:
    """Sky in the upper rows, then grass over all but the first, then a category of none."""
    base = root / "VOCdevkit/VOC2010"
    images, regions = [], []
    for number, (phase, key) in enumerate(KEYS.items()):
        write_picture(base / "JPEGImages" / f"{key}.jpg")
        names = {"image_id": number, "file_name": f"{key}.jpg", "phase": phase}
        images.append(names | {"height": HEIGHT, "width": WIDTH})
        regions += [
            region(number, 360, slice(0, 3)),
            region(number, 187, slice(1, 4)),
            region(number, 1, slice(5, 6)),
        ]
    content = {"images": images, "annos_segmentation": regions}
    (base / "trainval_merged.json").write_text(json.dumps(content))
    return root


def test_names_and_numbers() -> None:
    names = pascal_context60.CLASSES
    assert (len(pascal_context59.CLASSES), len(names)) == (59, 60)
    anchors = {0: "background", 1: "aeroplane", 37: "person", 47: "sky", 59: "wood"}
    assert {number: names[number] for number in anchors} == anchors
    assert list(names[1:]) == sorted(names[1:])
    ids = list(pascal_context.CATEGORY_IDS.values())
    assert ids == sorted(set(ids)), "the 459 categories are in the alphabet's order as well"


def test_the_json_is_converted(tmp_path: Path) -> None:
    folder = write_json(tmp_path)
    checked = data("check", "pascal-context60", folder)
    assert checked.code == 2
    assert f"run `capwright data convert pascal-context60 {folder}`" in checked.err
    done = data("convert", "pascal-context60", folder)
    assert json.loads(done.out) == {"written": 2, "already_there": 0}
    with_it, without = load("pascal-context60", folder), load("pascal-context59", folder)
    assert with_it.keys == without.keys == (KEYS["val"],)
    assert load("pascal-context60", folder, "train").keys == (KEYS["train"],)
    assert with_it[0].seg_HW[:, 0].tolist() == [47, 29, 29, 29, 0, 0]
    assert without[0].seg_HW[:, 0].tolist() == [46, 28, 28, 28, 255, 255]
    assert pascal_context60.check(folder) == pascal_context59.check(folder, "train") == []
    assert pascal_context.convert(folder).already_there == 2


def test_pictures_made_elsewhere_are_read(tmp_path: Path) -> None:
    base = tmp_path / "VOC2010"
    (base / "ImageSets/SegmentationContext").mkdir(parents=True)
    (base / "ImageSets/SegmentationContext/val.txt").write_text(KEYS["val"] + "\n")
    write_picture(base / "JPEGImages" / f"{KEYS['val']}.jpg")
    path = write_label(base / "SegmentationClassContext" / f"{KEYS['val']}.png", 0, 1, 59)
    np.testing.assert_array_equal(load("pascal-context60", tmp_path)[0].seg_HW, label_of(0, 1, 59))
    write_label(path, 0, 200)
    assert "the value 200, but Pascal Context of 59" in pascal_context60.check(tmp_path)[0]


def test_the_older_order_is_told_by_what_is_common() -> None:
    ours = Counter({47: 60, 29: 50, 53: 70, 50: 9, 36: 1, 54: 3})
    theirs = Counter({50: 60, 36: 50, 54: 70, 47: 4, 29: 9, 53: 3})
    assert pascal_context.suspect(ours) is None
    assert "20 classes of VOC came first" in (pascal_context.suspect(theirs) or "")
    assert pascal_context.suspect(Counter({50: 2, 36: 1})) is None, "two pictures tell nothing"


def test_without_a_json_there_is_nothing_to_convert(tmp_path: Path) -> None:
    (tmp_path / "VOC2010").mkdir()
    with pytest.raises(CapwrightError, match=r"has no trainval_merged\.json"):
        pascal_context.convert(tmp_path)
