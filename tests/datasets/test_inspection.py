import importlib
from pathlib import Path

import pytest

from capwright.core.errors import CapwrightError
from capwright.datasets import NAMES, module_of
from capwright.datasets.inspection import convert, inspect
from set_files import data

PAGE = Path(__file__).parents[2] / "docs/reference/datasets.md"


@pytest.mark.parametrize("name", NAMES)
def test_every_set_has_what_the_others_rely_on(name: str, tmp_path: Path) -> None:
    module = module_of(name)
    assert module.SPLITS and all(isinstance(split, str) for split in module.SPLITS)
    assert module.check(tmp_path, module.SPLITS[0]), "an empty folder is a problem"
    with pytest.raises(CapwrightError):
        module.load(tmp_path, module.SPLITS[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_set_is_in_the_reference(name: str) -> None:
    assert f"## {name}\n" in PAGE.read_text(encoding="utf-8")


def test_the_list_names_sets_splits_and_conversions() -> None:
    lines = data("list").out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(NAMES)
    assert "coco-stuff: val2017, train2017, can be converted" in lines
    assert "ade20k: validation, training" in lines


def test_scenes_keep_their_own_package() -> None:
    assert hasattr(importlib.import_module("capwright.datasets.scenes"), "SceneConfig")
    assert module_of("scenes").__name__ == "capwright.datasets.scenes_sets"  # type: ignore[attr-defined]


def test_problems_are_sentences_on_stderr_and_exit_code_2(tmp_path: Path) -> None:
    checked = data("check", "ade20k", tmp_path)
    assert checked.code == 2
    assert checked.out == '{"name": "ade20k", "split": "validation"}\n'
    assert checked.err.startswith(f"capwright: {tmp_path} has no folder images/validation")
    assert len(checked.err.splitlines()) == 1


def test_faults_of_the_command_line(tmp_path: Path) -> None:
    assert "is not a folder: give the one that holds ade20k" in (
        data("check", "ade20k", tmp_path / "none").err
    )
    assert "ade20k has no split 'val'" in data("check", "ade20k", tmp_path, "--split", "val").err
    assert "no data set is called 'ade'" in data("check", "ade", tmp_path).err
    with pytest.raises(CapwrightError, match="ade20k is read as it comes; conversions are there"):
        convert("ade20k", tmp_path)


def test_inspect_says_what_does_not_load(tmp_path: Path) -> None:
    found = inspect("kitti", tmp_path)
    assert (found.facts["split"], len(found.problems)) == ("test", 1)
