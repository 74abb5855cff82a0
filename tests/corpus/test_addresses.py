"""What a corpus address names: braces, patterns, joins, and what lies there."""

from pathlib import Path

import pytest

from capwright.core.errors import CapwrightError
from capwright.corpus.addresses import detect, files_at, files_below, split_corpus
from capwright.corpus.reader import parse_columns


def make(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return str(folder)


def test_braces_are_ranges_and_choices() -> None:
    assert split_corpus("a/{008..011}.tar") == ["a/008.tar", "a/009.tar", "a/010.tar", "a/011.tar"]
    assert split_corpus("a/{8..10}") == ["a/8", "a/9", "a/10"]
    assert split_corpus("{x,y}/{0..1}::z") == ["x/0", "x/1", "y/0", "y/1", "z"]


def test_files_of_folders_patterns_and_joins(tmp_path: Path) -> None:
    one = make(tmp_path / "one", "00000.tar", "00000.parquet", "00000_stats.json", "00001.TAR")
    two = make(tmp_path / "two", "9.tar")
    names = [Path(file).name for file in files_at(f"{one}::{two}/*.tar", (".tar",))]
    assert names == ["00000.tar", "00001.TAR", "9.tar"]
    assert files_at(f"{one}::{one}", (".tar",)) == files_at(one, (".tar",))
    with pytest.raises(CapwrightError, match=r"no shards in '.*00002.tar': expected a folder"):
        files_at(one + "/{00000,00002}.tar", (".tar",))


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    folder = make(tmp_path, "a/1.JPG", ".cache/2.jpg", "_old/3.jpg", "a/._1.jpg")
    assert [Path(file).name for file in files_below(folder, (".jpg",))] == ["1.JPG"]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("00000.tar", "00000.parquet", "00000_stats.json"), "webdataset"),
        (("a.parquet", "a.csv"), "tables"),
        (("pairs.tsv", "pictures/1.jpg"), "delimited"),
        (("dataset_info.json", "state.json", "data-00000-of-00001.arrow"), "huggingface"),
        (("dataset_dict.json", "train/state.json"), "huggingface"),
        (("sub/1.png", "sub/1.txt"), "folder"),
    ],
)
def test_the_format_is_told_by_names(tmp_path: Path, names: tuple[str, ...], kind: str) -> None:
    assert detect(make(tmp_path, *names)) == kind


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    squeezed = make(tmp_path / "z", "00000.tar.gz")
    with pytest.raises(CapwrightError, match=r"compressed tar.*decompress the shards first"):
        detect(squeezed)
    with pytest.raises(CapwrightError, match="no shards in"):
        detect(make(tmp_path / "n", "readme.md"))
    with pytest.raises(CapwrightError, match="has an empty part"):
        detect(squeezed + "::")
    both = make(tmp_path / "t", "1.tar") + "::" + make(tmp_path / "p", "1.parquet")
    with pytest.raises(CapwrightError, match=r"one format, but here .* webdataset.* tables"):
        detect(both)
    with pytest.raises(CapwrightError, match=r"cannot be opened .*pip install 'capwright\[s3\]'"):
        detect("nonsense://bucket")
    with pytest.raises(CapwrightError, match="names no shards: write it as"):
        detect("a/{5..2}.tar")


def test_columns_are_named_in_pairs() -> None:
    assert parse_columns(["text=re_caption", "key="]) == {"text": "re_caption", "key": ""}
    for wrong in ("text", "text=", "caption=x"):
        with pytest.raises(CapwrightError, match="names no column: write text=NAME"):
            parse_columns([wrong])
