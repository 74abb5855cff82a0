import json
from pathlib import Path

import numpy as np
import pytest

from capwright.core.errors import CapwrightError
from capwright.datasets import coco_names, coco_object, coco_stuff, load
from capwright.datasets.label_pictures import read_label
from set_files import data, label_of, write_label, write_picture

KEYS = ("000000000139", "000000000285")
# person, bicycle, toothbrush, banner, wood, not labelled; as they are stored
RAW = (0, 1, 89, 91, 181, 255)


def write_raw(root: Path, place: str = "stuffthingmaps_trainval2017") -> Path:
    for key in KEYS:
        write_picture(root / "images/val2017" / f"{key}.jpg")
        write_label(root / place / "val2017" / f"{key}.png", *RAW)
    return root


def test_classes_are_the_171_in_order() -> None:
    assert len(coco_stuff.CLASSES) == len(set(coco_stuff.CLASSES)) == 171
    anchors = {0: "person", 79: "toothbrush", 80: "banner", 145: "sky-other", 170: "wood"}
    assert {number: coco_stuff.CLASSES[number] for number in anchors} == anchors
    assert list(coco_names.STUFF) == sorted(coco_names.STUFF)
    assert (len(coco_names.THING_IDS), len(coco_names.STUFF_IDS)) == (80, 91)
    ids = dict(zip(coco_names.THINGS, coco_names.THING_IDS, strict=True))
    assert [ids[name] for name in ("stop sign", "chair", "tv", "toothbrush")] == [13, 62, 72, 90]


def test_raw_ids_are_refused_with_the_command_to_run(tmp_path: Path) -> None:
    folder = write_raw(tmp_path)
    checked = data("check", "coco-stuff", folder)
    assert checked.code == 2
    assert checked.err.startswith("capwright: the labels hold raw ids (0 to 181; 2 of 2 have no")
    assert f"run `capwright data convert coco-stuff {folder}`" in checked.err
    with pytest.raises(CapwrightError, match="raw ids"):
        load("coco-stuff", folder)


def test_conversion_gives_class_numbers_and_leaves_the_raw_ones(tmp_path: Path) -> None:
    folder = write_raw(tmp_path)
    converted = data("convert", "coco-stuff", folder)
    assert json.loads(converted.out) == {"written": 2, "already_there": 0}
    loaded = load("coco-stuff", folder)
    assert (loaded.keys, loaded.has_background) == (KEYS, False)
    np.testing.assert_array_equal(loaded[0].seg_HW, label_of(0, 1, 79, 80, 170, 255))
    labels = folder / "stuffthingmaps_trainval2017/val2017"
    np.testing.assert_array_equal(read_label(labels / f"{KEYS[0]}.png"), label_of(*RAW))
    checked = data("check", "coco-stuff", folder)
    facts = {"name": "coco-stuff", "split": "val2017", "items": 2, "classes": 171}
    assert (checked.code, json.loads(checked.out)) == (0, facts)


def test_conversion_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = write_raw(tmp_path)
    coco_stuff.convert(folder)
    first, second = sorted(tmp_path.rglob("*_labelTrainIds.png"))
    second.unlink()
    before = first.stat().st_mtime_ns
    assert "raw ids (0 to 181; 1 of 2" in coco_stuff.check(folder)[0]
    done = coco_stuff.convert(folder)
    assert (done.written, done.already_there) == (1, 1)
    assert first.stat().st_mtime_ns == before and second.exists()
    assert not list(tmp_path.rglob("*.partial"))


def test_every_raw_id_has_one_class() -> None:
    numbers = [number for number in coco_stuff.RAW_TABLE if 0 <= number < 255]
    assert numbers == list(range(171))
    unused = [raw for raw in range(182) if coco_stuff.RAW_TABLE[raw] < 0]
    assert unused == [identity - 1 for identity in coco_names.UNUSED_IDS]


def test_raw_ids_under_the_name_of_converted_ones_are_seen(tmp_path: Path) -> None:
    for key in KEYS:
        write_picture(tmp_path / "val2017" / f"{key}.jpg")
        write_label(tmp_path / "annotations/val2017" / f"{key}_labelTrainIds.png", *RAW)
    (problem,) = coco_stuff.check(tmp_path)
    assert "_labelTrainIds.png hold raw ids (e.g. 181; classes are 0 to 170)" in problem
    with pytest.raises(CapwrightError, match=r"raw ids \(e\.g\. 181"):
        load("coco-stuff", tmp_path)[0]


def test_a_raw_id_that_no_class_has_stops_the_conversion(tmp_path: Path) -> None:
    folder = write_raw(tmp_path)
    write_label(folder / "stuffthingmaps_trainval2017/val2017" / f"{KEYS[1]}.png", 11)
    with pytest.raises(CapwrightError, match="the value 11, but COCO-Stuff's raw ids"):
        coco_stuff.convert(folder)


def test_nothing_to_convert_is_said(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=r"unpack stuffthingmaps_trainval2017\.zip"):
        coco_stuff.convert(tmp_path)


def test_object_has_a_background_of_all_stuff(tmp_path: Path) -> None:
    assert len(coco_object.CLASSES) == 81
    anchors = {0: "background", 1: "person", 80: "toothbrush"}
    assert {number: coco_object.CLASSES[number] for number in anchors} == anchors
    folder = write_raw(tmp_path, "annotations")
    assert "run `capwright data convert coco-object" in coco_object.check(folder)[0]
    assert json.loads(data("convert", "coco-object", folder).out)["written"] == 2
    loaded = load("coco-object", folder)
    assert loaded.has_background
    np.testing.assert_array_equal(loaded[0].seg_HW, label_of(1, 2, 80, 0, 0, 255))
    assert coco_object.check(folder) == []
    coco_stuff.convert(folder)  # both conversions live side by side
    assert coco_stuff.check(folder) == coco_object.check(folder) == []
