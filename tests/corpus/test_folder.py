"""A folder tree of pictures: keys, texts beside them, metadata files, hidden and broken ones."""

import json
from pathlib import Path

import fsspec
import pytest

from capwright.core.errors import CapwrightError
from capwright.corpus.index import left_out, shard_sizes
from capwright.corpus.reader import ReadOptions
from corpus_files import index_rows, picture, stored_pictures, write_files


def test_keys_and_texts(tmp_path: Path) -> None:
    folder = write_files(
        tmp_path / "pics",
        {
            "a.b.JPG": picture(0),
            "a.b.TXT": b"dots and capitals ",
            "sub/ünï.png": picture(1, "png"),
            "sub/ünï.txt": "größe".encode(),
            "sub/bare.webp": picture(2, "webp"),
            "two.jpg": picture(3),
            "two.txt": b'["one", "another"]',
            "two.json": b'{"url": "http://a", "width": 4}',
            "only.jpeg": picture(4),
            "only.json": b'{"caption": "from json"}',
            "_cache/x.jpg": picture(5),
            ".hidden.jpg": picture(6),
            "notes.txt": b"of no picture",
        },
    )
    rows = {row["key"]: row for row in index_rows(folder, tmp_path / "work")}
    assert list(rows) == ["a.b", "only", "sub/bare", "sub/ünï", "two"]
    assert {key: row["text"] for key, row in rows.items()} == {
        "a.b": "dots and capitals",
        "only": "from json",
        "sub/bare": "",
        "sub/ünï": "größe",
        "two": "one",
    }
    assert rows["two"]["more_texts"] == ["another"]
    assert json.loads(rows["two"]["json"]) == {"url": "http://a", "width": 4}
    assert rows["sub/bare"]["json"] == ""
    assert stored_pictures(tmp_path / "work")[0] == picture(0)


def test_another_text_suffix_and_shards(tmp_path: Path) -> None:
    files = {f"{i}.jpg": picture(i) for i in range(5)} | {"3.caption": b"three", "3.txt": b"no"}
    folder = write_files(tmp_path / "pics", files)
    options = ReadOptions(shard_rows=2, text_suffix="caption")
    rows = index_rows(folder, tmp_path / "work", read=options)
    assert shard_sizes(tmp_path / "work") == {"pics-00000": 2, "pics-00001": 2, "pics-00002": 1}
    assert [row["text"] for row in rows] == ["", "", "", "three", ""]
    assert stored_pictures(tmp_path / "work") == [picture(i) for i in range(5)]


def test_metadata_files_of_an_imagefolder(tmp_path: Path) -> None:
    lines = [{"file_name": "a.jpg", "text": "a cow", "tags": ["x"]}, {"file_name": "in/b.jpg"}]
    folder = write_files(
        tmp_path / "pics",
        {
            "train/a.jpg": picture(0),
            "train/in/b.jpg": picture(1),
            "train/metadata.jsonl": "\n".join(map(json.dumps, lines)).encode(),
            "test/c.jpg": picture(2),
            "test/d.jpg": picture(3),
            "test/d.txt": b"its own",
            "test/metadata.csv": b'file_name,caption\nc.jpg,"a dog, sleeping"\nd.jpg,a bird\n',
        },
    )
    rows = {row["key"]: row for row in index_rows(folder, tmp_path / "work")}
    assert {key: row["text"] for key, row in rows.items()} == {
        "test/c": "a dog, sleeping", "test/d": "its own", "train/a": "a cow", "train/in/b": ""
    }  # fmt: skip
    assert json.loads(rows["train/a"]["json"]) == {"text": "a cow", "tags": ["x"]}


def test_broken_pictures_are_counted(tmp_path: Path) -> None:
    good = {f"{i:02d}.jpg": picture(i) for i in range(10)}
    bad = {"x.jpg": b"", "y.png": b"<html>", "z.jpg": picture(1)[:250]}
    index_rows(write_files(tmp_path / "pics", good | bad), tmp_path / "work", max_failure_rate=0.3)
    assert sum(left_out(tmp_path / "work").values()) == 3
    with pytest.raises(CapwrightError, match="3 of 13 samples failed"):
        index_rows(tmp_path / "pics", tmp_path / "other")


def test_refusals(tmp_path: Path) -> None:
    same = write_files(tmp_path / "same", {"a.jpg": picture(0), "a.png": picture(1, "png")})
    with pytest.raises(CapwrightError, match="has the key 'a' twice"):
        index_rows(same, tmp_path / "work")
    empty = write_files(tmp_path / "empty", {"a.txt": b"x"})
    with pytest.raises(CapwrightError, match=r"no pictures below .*: expected \.jpg"):
        index_rows(empty, tmp_path / "work", format="folder")


def test_a_new_picture_is_noticed(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pics", {"a.jpg": picture(0)})
    assert len(index_rows(folder, tmp_path / "work")) == 1
    write_files(folder, {"b.jpg": picture(1)})
    with pytest.raises(CapwrightError, match="was made with another plan"):
        index_rows(folder, tmp_path / "work")


def test_memory_addresses(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/pics/x/a.jpg": picture(0), "/pics/x/a.txt": b"a cow"})
    (row,) = index_rows("memory://pics", tmp_path / "work")
    assert (row["key"], row["text"]) == ("x/a", "a cow")
    assert stored_pictures(tmp_path / "work") == [picture(0)]
