import json
from pathlib import Path

import numpy as np

from capwright.datasets import cityscapes, load
from capwright.datasets.label_pictures import read_label
from set_files import data, label_of, write_label, write_picture

KEY = "frankfurt/frankfurt_000000_000294"


def write(root: Path, ending: str, *values: int) -> Path:
    write_picture(root / "leftImg8bit/val" / f"{KEY}_leftImg8bit.png")
    return write_label(root / "gtFine/val" / f"{KEY}{ending}.png", *values)


def test_names_and_numbers() -> None:
    assert len(cityscapes.CLASSES) == 19
    anchors = {0: "road", 10: "sky", 11: "person", 13: "car", 18: "bicycle"}
    assert {number: cityscapes.CLASSES[number] for number in anchors} == anchors


def test_label_ids_become_classes(tmp_path: Path) -> None:
    write(tmp_path, "_gtFine_labelIds", 0, 7, 26, 29, 33)
    loaded = load("cityscapes", tmp_path)
    assert loaded.keys == (KEY,)
    np.testing.assert_array_equal(loaded[0].seg_HW, label_of(255, 0, 13, 255, 18))
    assert cityscapes.check(tmp_path) == []


def test_train_ids_alone_are_read_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, "_gtFine_labelTrainIds", 0, 13, 18, 255)
    np.testing.assert_array_equal(load("cityscapes", tmp_path)[0].seg_HW, label_of(0, 13, 18, 255))
    assert cityscapes.check(tmp_path) == []


def test_label_ids_under_the_name_of_train_ids_are_seen(tmp_path: Path) -> None:
    write(tmp_path, "_gtFine_labelTrainIds", 7, 26, 33)
    (problem,) = cityscapes.check(tmp_path)
    assert "hold label ids (e.g. 33; train ids are 0 to 18 and 255)" in problem


def test_train_ids_under_the_name_of_label_ids_are_seen(tmp_path: Path) -> None:
    path = write(tmp_path, "_gtFine_labelIds", 0, 13, 255)
    assert "train ids under the wrong name" in cityscapes.check(tmp_path)[0]
    write_label(path, 0, 13)
    assert "they seem to hold train ids" in cityscapes.check(tmp_path)[0]


def test_conversion_for_other_tools(tmp_path: Path) -> None:
    raw = write(tmp_path, "_gtFine_labelIds", 0, 7, 26)
    assert json.loads(data("convert", "cityscapes", tmp_path).out)["written"] == 1
    path = raw.with_name(f"{raw.name.removesuffix('_labelIds.png')}_labelTrainIds.png")
    np.testing.assert_array_equal(read_label(path), label_of(255, 0, 13))
    assert cityscapes.check(tmp_path) == []


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    assert "has no folder leftImg8bit/val" in cityscapes.check(tmp_path)[0]
