import json
from pathlib import Path

import pytest

from capwright.core.errors import CapwrightError
from capwright.datasets import imagenet, load
from set_files import data, write_picture

IDS = ("n01440764", "n01443537")


def write(root: Path, *folders: str, names: str | None = None) -> Path:
    for number, name in enumerate(folders):
        for i in range(2):
            write_picture(root / "val" / name / f"ILSVRC2012_val_0000000{i}.JPEG", colour=number)
    if names is not None:
        (root / "classnames.txt").write_text(names)
    return root


def test_names_come_from_the_list(tmp_path: Path) -> None:
    loaded = load("imagenet", write(tmp_path, *reversed(IDS), names="tench\ngoldfish\n"))
    assert loaded.classes == ("tench", "goldfish")
    assert loaded.keys[0] == "n01440764/ILSVRC2012_val_00000000"
    assert [item.label for item in loaded] == [0, 0, 1, 1]
    assert (loaded[0].image.mode, loaded[0].image.getpixel((0, 0))[1]) == ("RGB", 20)  # type: ignore[index]
    checked = data("check", "imagenet", tmp_path)
    facts = {"name": "imagenet", "split": "val", "items": 4, "classes": 2}
    assert (checked.code, json.loads(checked.out)) == (0, facts)


def test_names_come_from_the_folders_otherwise(tmp_path: Path) -> None:
    assert load("imagenet", write(tmp_path, "red_fox", "cat")).classes == ("cat", "red fox")
    assert imagenet.check(tmp_path) == []


def test_wordnet_ids_without_a_list_are_a_problem(tmp_path: Path) -> None:
    checked = data("check", "imagenet", write(tmp_path, *IDS))
    assert checked.code == 2
    assert "2 classes are named by WordNet ids (e.g. n01440764)" in checked.err


def test_a_list_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, *IDS, names="tench\n")
    with pytest.raises(CapwrightError, match=r"has 1 names, but .* has 2 folders of classes"):
        load("imagenet", folder)
    assert "has 1 names" in imagenet.check(folder)[0]


def test_a_flat_folder_and_an_empty_class_are_seen(tmp_path: Path) -> None:
    write_picture(tmp_path / "val/ILSVRC2012_val_00000001.JPEG")
    assert "no folders of classes but 1 pictures" in imagenet.check(tmp_path)[0]
    (tmp_path / "val/fox").mkdir()
    assert "1 classes have no pictures" in imagenet.check(tmp_path)[0]
