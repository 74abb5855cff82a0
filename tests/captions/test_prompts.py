from pathlib import Path

import pytest

from capwright.captions.prompts import load_prompt
from capwright.core.errors import CapwrightError


@pytest.mark.parametrize("style", ["short", "long", "regions"])
def test_the_prompts_of_describe_are_there(style: str) -> None:
    prompt = load_prompt(f"describe-{style}")
    assert prompt.version >= 1
    assert prompt.label == str(prompt) == f"describe-{style}/{prompt.version}"
    assert "picture" in prompt.text and not prompt.text.startswith("version")


def test_values_are_filled_in_one_pass(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text('version: 12\n\nSay {a} and {b}, as {"a": {c}}.\n')
    prompt = load_prompt(str(file))
    assert prompt.label == "mine/12"
    assert prompt.fill(a="{b}", b=3, d="none") == 'Say {b} and 3, as {"a": {c}}.'


def test_files_of_windows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbfversion: 2\r\n\r\nSay\r\nit.\r\n")
    assert load_prompt(str(file)).text == "Say\nit."


def test_an_unknown_name_is_told_the_near_ones() -> None:
    with pytest.raises(CapwrightError, match="no prompt 'describe-shrot': did you mean describe-s"):
        load_prompt("describe-shrot")
    with pytest.raises(CapwrightError, match=r"there are describe-long, .*path ending in \.txt"):
        load_prompt("xyzzy")


@pytest.mark.parametrize("content", ["Say it.", "version: x\n\nSay it.", "version: 1\n\n \n", ""])
def test_a_file_without_version_or_text_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(content)
    with pytest.raises(CapwrightError, match="must begin with a line 'version: 1', then an empty"):
        load_prompt(str(file))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=r"cannot read the prompt .*none\.txt: No such file"):
        load_prompt(str(tmp_path / "none.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"version: 1\n\n\xff\xfe")
    with pytest.raises(CapwrightError, match=r"bytes\.txt is not UTF-8: save it as UTF-8 text"):
        load_prompt(str(tmp_path / "bytes.txt"))
