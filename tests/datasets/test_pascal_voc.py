from pathlib import Path

import numpy as np
import pytest

from capwright.core.errors import CapwrightError
from capwright.datasets import load, pascal_voc20, pascal_voc21
from set_files import label_of, write_label, write_picture

KEYS = ("2007_000033", "2007_000042")


def write(root: Path, *values: int) -> Path:
    base = root / "VOCdevkit/VOC2012"
    lists = base / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{key}\n" for key in KEYS))
    for key in (*KEYS, "2007_000032"):  # the last is in no list
        write_picture(base / "JPEGImages" / f"{key}.jpg")
        write_label(base / "SegmentationClass" / f"{key}.png", *values, palette=True)
    return root


def test_names_and_numbers() -> None:
    assert (len(pascal_voc20.CLASSES), len(pascal_voc21.CLASSES)) == (20, 21)
    anchors = {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor"}
    assert {number: pascal_voc21.CLASSES[number] for number in anchors} == anchors
    assert pascal_voc21.CLASSES[1:] == pascal_voc20.CLASSES


def test_with_and_without_background(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, 15, 255, 20)
    with_it, without = load("pascal-voc21", folder), load("pascal_voc20", folder)
    assert with_it.keys == without.keys == KEYS
    assert (with_it.has_background, without.has_background) == (True, False)
    np.testing.assert_array_equal(with_it[0].seg_HW, label_of(0, 15, 255, 20))
    np.testing.assert_array_equal(without[0].seg_HW, label_of(255, 14, 255, 19))
    assert pascal_voc21.check(folder) == pascal_voc20.check(folder) == []
    assert len(load("pascal-voc21", folder / "VOCdevkit/VOC2012")) == 2


def test_objects_instead_of_classes_and_lost_files_are_seen(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, 31)
    base = folder / "VOCdevkit/VOC2012"
    (base / "SegmentationClass" / f"{KEYS[0]}.png").unlink()
    (base / "JPEGImages" / f"{KEYS[0]}.jpg").unlink()
    lost, bare, *_, wrong = pascal_voc21.check(folder)
    assert lost.startswith("1 of 2 pictures are missing")
    assert bare.startswith("1 of 2 pictures have no label")
    assert "the value 31, but VOC stores" in wrong


def test_a_missing_list_or_folder_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 0)
    (problem,) = pascal_voc21.check(folder, "train")
    assert problem.endswith("Segmentation/train.txt, the list of the split's pictures, is missing")
    (problem,) = pascal_voc21.check(tmp_path / "VOCdevkit/VOC2012/ImageSets")
    assert "has no folder SegmentationClass" in problem


def test_the_augmented_list_reads_the_augmented_labels(tmp_path: Path) -> None:
    base = write(tmp_path, 0) / "VOCdevkit/VOC2012"
    path = base / "ImageSets/Segmentation/trainaug.txt"
    path.write_text(f"/JPEGImages/{KEYS[0]}.jpg /SegmentationClassAug/{KEYS[0]}.png\n")
    write_label(base / "SegmentationClassAug" / f"{KEYS[0]}.png", 5)
    loaded = load("pascal-voc21", tmp_path, "trainaug")
    assert (loaded.keys, int(loaded[0].seg_HW.max())) == (KEYS[:1], 5)


def test_an_unknown_set_or_split_is_named_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="did you mean 'pascal-voc21'"):
        load("pascal-voc12", tmp_path)
    with pytest.raises(CapwrightError, match="no split 'test': allowed are val, train, trainval"):
        load("pascal-voc21", tmp_path, "test")
