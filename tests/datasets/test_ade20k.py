import pickle
from pathlib import Path

import numpy as np
import pytest

from capwright.core.errors import CapwrightError
from capwright.datasets import ade20k, load
from set_files import label_of, write_label, write_picture

NAME = "ADE_val_0000000{}"


def write(root: Path, *labels: tuple[int, ...], split: str = "validation") -> Path:
    for number, values in enumerate(labels, 1):
        name = NAME.format(number)
        base = root / "ADEChallengeData2016"
        write_picture(base / "images" / split / f"{name}.jpg")
        write_label(base / "annotations" / split / f"{name}.png", *values)
    return root


def test_classes_are_the_150_in_order() -> None:
    assert len(ade20k.CLASSES) == len(set(ade20k.CLASSES)) == 150
    anchors = {0: "wall", 2: "sky", 12: "person", 20: "car", 76: "boat", 126: "animal", 149: "flag"}
    assert {number: ade20k.CLASSES[number] for number in anchors} == anchors


def test_zero_is_ignored_and_the_rest_shifts(tmp_path: Path) -> None:
    loaded = load("ade20k", write(tmp_path, (0, 1, 13, 150), (1,)))
    assert (len(loaded), loaded.ignore, loaded.has_background) == (2, 255, False)
    item = loaded[0]
    assert item.key == NAME.format(1)
    assert (item.image.mode, item.seg_HW.dtype) == ("RGB", np.uint8)
    np.testing.assert_array_equal(item.seg_HW, label_of(255, 0, 12, 149))


def test_a_set_can_be_iterated_indexed_from_the_end_and_pickled(tmp_path: Path) -> None:
    loaded = load("ade20k", write(tmp_path, (1,), (2,)))
    assert [int(item.seg_HW[0, 0]) for item in loaded] == [0, 1]
    assert loaded[-1].key == NAME.format(2)
    assert pickle.loads(pickle.dumps(loaded))[1].seg_HW[0, 0] == 1


def test_the_inner_folder_and_the_other_split_are_found(tmp_path: Path) -> None:
    write(tmp_path, (1,), split="training")
    assert len(load("ade20k", tmp_path / "ADEChallengeData2016", "training")) == 1
    with pytest.raises(CapwrightError, match="no folder images/validation"):
        load("ade20k", tmp_path)


def test_a_good_copy_has_no_problem(tmp_path: Path) -> None:
    assert ade20k.check(write(tmp_path, (0, 150), (7,))) == []


def test_shifted_labels_are_seen(tmp_path: Path) -> None:
    folder = write(tmp_path, (0, 149, 255))
    problems = ade20k.check(folder)
    assert len(problems) == 1
    assert "the value 255" in problems[0] and "already shifted" in problems[0]
    with pytest.raises(CapwrightError, match="already shifted"):
        load("ade20k", folder)[0]


def test_pictures_without_labels_and_other_sizes_are_seen(tmp_path: Path) -> None:
    folder = write(tmp_path, (1,), (2,), (3,))
    base = folder / "ADEChallengeData2016"
    (base / "annotations/validation" / f"{NAME.format(1)}.png").unlink()
    write_picture(base / "images/validation" / f"{NAME.format(2)}.jpg", size=(4, 4))
    problems = ade20k.check(folder)
    assert [p.split(",")[0] for p in problems[:1]] == ["1 of 3 pictures have no label"]
    assert "is 8 × 6, but its picture is 4 × 4" in problems[1] and len(problems) == 2
    with pytest.raises(CapwrightError, match="has no label: run `capwright data check"):
        load("ade20k", folder)


def test_one_sentence_for_many_broken_files(tmp_path: Path) -> None:
    folder = write(tmp_path, (1,), (2,), (3,))
    for number in (1, 3):
        name = f"annotations/validation/{NAME.format(number)}.png"
        (folder / "ADEChallengeData2016" / name).write_bytes(b"half a picture")
    (problem,) = ade20k.check(folder)
    assert "is not a readable picture" in problem
    assert problem.endswith("(and 1 more like it)")


def test_coloured_labels_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, (1,))
    write_picture(folder / "ADEChallengeData2016/annotations/validation" / f"{NAME.format(1)}.png")
    assert "has the mode RGB: a label picture has one 8-bit number" in ade20k.check(folder)[0]
