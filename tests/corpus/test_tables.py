"""Parquet with pictures in it or beside it: places that read back, shards, refusals."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capwright.core.errors import CapwrightError
from capwright.corpus.index import IndexConfig, left_out, run, shard_sizes
from capwright.corpus.reader import ReadOptions, Shard
from capwright.corpus.tables import cut
from corpus_files import index_rows, picture, stored_pictures, tar_bytes, write_files


def write_table(path: Path, columns: dict[str, Any], **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **settings)
    return path


@pytest.mark.parametrize("layout", ["binary", "large binary", "struct", "paths"])
def test_pictures_read_back_wherever_they_lie(tmp_path: Path, layout: str) -> None:
    pictures = [picture(i) for i in range(7)]
    column: Any = {
        "binary": pa.array(pictures),
        "large binary": pa.array(pictures, pa.large_binary()),
        "struct": [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(pictures)],
        "paths": [f"{i}.jpg" for i in range(7)],
    }[layout]
    write_files(tmp_path, {f"{i}.jpg": data for i, data in enumerate(pictures)})
    columns = {"image": column, "TEXT": [f"text {i}" for i in range(7)], "path": ["no.jpg"] * 7}
    if layout == "paths":
        columns["path"] = column
    write_table(tmp_path / "a.parquet", columns, row_group_size=3)
    rows = index_rows(tmp_path / "a.parquet", tmp_path / "work", read=ReadOptions(shard_rows=2))
    assert shard_sizes(tmp_path / "work") == {
        "a-00000": 1, "a-00001": 2, "a-00002": 1, "a-00003": 2, "a-00004": 1
    }  # fmt: skip
    assert [row["text"] for row in rows] == [f"text {i}" for i in range(7)]
    assert stored_pictures(tmp_path / "work") == pictures
    expected = {"struct": "image.bytes", "paths": None}.get(layout, "image")
    assert {row["image_column"] for row in rows} == {expected}
    assert [row["image_offset"] for row in rows] == ([0] * 7 if layout == "paths" else [*range(7)])


def test_other_columns_go_to_json(tmp_path: Path) -> None:
    columns = {
        "uid": ["u0", "u1"],
        "url": ["http://a/0", None],
        "jpg": pa.array([picture(0), picture(1)]),
        "caption": [["one", "two"], []],
        "similarity": [0.25, float("nan")],
        "tags": [["a", "b"], []],
        "embedding": [[0.5], [0.25]],
        "label": pa.array(["cat", "dog"]).dictionary_encode(),
    }
    write_table(tmp_path / "a.parquet", columns)
    one, two = index_rows(tmp_path / "a.parquet", tmp_path / "work")
    assert (one["key"], one["text"], one["more_texts"]) == ("u0", "one", ["two"])
    assert (two["key"], two["text"], two["more_texts"]) == ("u1", "", [])
    assert json.loads(one["json"]) == {
        "url": "http://a/0", "similarity": 0.25, "tags": ["a", "b"], "label": "cat"
    }  # fmt: skip
    assert json.loads(two["json"]) == {"label": "dog"}


def test_a_chosen_field_and_integer_keys(tmp_path: Path) -> None:
    columns = {
        "sample": [{"bytes": picture(0), "path": ""}, {"bytes": picture(1), "path": ""}],
        "number": [5, 6],
    }
    write_table(tmp_path / "a.parquet", columns)
    options = ReadOptions(columns={"picture": "sample.bytes", "key": "number"})
    rows = index_rows(tmp_path / "a.parquet", tmp_path / "work", read=options)
    assert [row["key"] for row in rows] == ["5", "6"]
    assert stored_pictures(tmp_path / "work") == [picture(0), picture(1)]


def test_broken_cells_are_counted_and_paths_followed(tmp_path: Path) -> None:
    write_files(tmp_path, {"data/own.jpg": picture(9)})
    cells = [
        {"bytes": picture(0), "path": None},
        {"bytes": None, "path": "own.jpg"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": ""},
        None,
        {"bytes": picture(1)[:200], "path": None},
        {"bytes": None, "path": "gone.jpg"},
    ]
    write_table(tmp_path / "data/a.parquet", {"image": cells})
    rows = index_rows(tmp_path / "data", tmp_path / "work", max_failure_rate=1.0)
    assert [row["key"] for row in rows] == ["000000000", "000000001"]
    assert stored_pictures(tmp_path / "work") == [picture(0), picture(9)]
    assert left_out(tmp_path / "work") == {
        "row without a picture": 3,
        "unreadable picture: OSError": 1,
        "the picture's file is missing": 1,
    }


def test_img2dataset_metadata_beside_tars_is_not_the_corpus(tmp_path: Path) -> None:
    write_files(tmp_path, {"00000.tar": tar_bytes([("0.jpg", picture(0)), ("0.txt", b"a cow")])})
    write_table(tmp_path / "00000.parquet", {"url": ["http://a"], "caption": ["a cow"]})
    assert run(IndexConfig(corpus=str(tmp_path), work=tmp_path / "work")).format == "webdataset"
    with pytest.raises(CapwrightError, match="but no pictures: fetch them first"):
        index_rows(tmp_path / "00000.parquet", tmp_path / "other")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": pa.array([], pa.binary())}, "has no rows"),
        ({"image": pa.array([[1.0]])}, "no column of pictures among 'image'"),
        ({"img": [b"x"], "key": ["a"], "n": [[1]]}, "holds neither bytes nor paths"),
        ({"path": ["https://a/b.jpg"]}, "row 0 of .* names a picture in the web"),
    ],
)
def test_refusals(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write_table(tmp_path / "a.parquet", columns)
    chosen = {"picture": "n"} if "n" in columns else {}
    with pytest.raises(CapwrightError, match=message):
        index_rows(tmp_path / "a.parquet", tmp_path / "work", read=ReadOptions(columns=chosen))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.parquet": b"<html>"})
    with pytest.raises(CapwrightError, match=r"a\.parquet is not a parquet file .*: remove it"):
        index_rows(tmp_path / "a.parquet", tmp_path / "work")


def test_memory_addresses(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "a.parquet", {"image": [picture(1), picture(2)], "text": ["", ""]}
    )
    fsspec.filesystem("memory").pipe("/tables/a.parquet", path.read_bytes())
    index_rows("memory://tables", tmp_path / "work")
    assert stored_pictures(tmp_path / "work") == [picture(1), picture(2)]


@pytest.mark.parametrize("shard_rows", [1, 3, 4, 10, 100])
@pytest.mark.parametrize("groups", [[10], [3, 3, 3, 1], [1] * 10, [7, 0, 3], [4, 6]])
def test_shards_cover_every_row_once(groups: list[int], shard_rows: int) -> None:
    for inside in (True, False):
        shards: list[Shard] = cut("f", 1, "name", groups, shard_rows, inside=inside)
        rows = [row for s in shards for row in range(s.start, s.stop or 0)]
        assert rows == list(range(10))
        assert len({s.name for s in shards}) == len(shards)
        if inside:
            assert all((s.stop or 0) - s.start <= 2 * shard_rows for s in shards)
    assert cut("f", 1, "name", [], shard_rows) == []
