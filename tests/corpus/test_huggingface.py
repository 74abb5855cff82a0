"""Folders written by the real `datasets`: every picture is found again by its byte range."""

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

import datasets
from capwright.core.errors import CapwrightError
from capwright.corpus.index import left_out, shard_sizes
from capwright.corpus.reader import ReadOptions
from corpus_files import index_rows, picture, stored_pictures, write_files

datasets.disable_progress_bars()


def dataset(pictures: list[bytes | None], **more: list[Any]) -> datasets.Dataset:
    features = {"picture": datasets.Image(), "caption": datasets.Value("string")}
    for name, values in more.items():
        features[name] = datasets.Dataset.from_dict({name: values}).features[name]
    columns = {
        "picture": [data if data is None else {"bytes": data, "path": None} for data in pictures],
        "caption": [f"text {i}" for i in range(len(pictures))],
        **more,
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write_arrow(path: Path, table: pa.Table, **settings: Any) -> None:
    options = pa.ipc.IpcWriteOptions(**settings)
    with (
        pa.OSFile(str(path), "wb") as out,
        pa.ipc.new_stream(out, table.schema, options=options) as stream,
    ):
        stream.write_table(table)


def test_pictures_read_back_by_byte_range(tmp_path: Path) -> None:
    pictures: list[bytes | None] = [picture(i, "png" if i % 2 else "jpg") for i in range(9)]
    made = dataset(pictures, tags=[["a", "b"]] * 9, score=[0.5] * 9)
    made.save_to_disk(str(tmp_path / "data"), num_shards=2)
    rows = index_rows(tmp_path / "data", tmp_path / "work")
    assert stored_pictures(tmp_path / "work") == pictures
    assert [row["text"] for row in rows] == [f"text {i}" for i in range(9)]
    assert shard_sizes(tmp_path / "work") == {
        "data-data-00000-of-00002": 5, "data-data-00001-of-00002": 4
    }  # fmt: skip
    assert json.loads(rows[0]["json"]) == {"tags": ["a", "b"], "score": 0.5}
    assert {row["image_column"] for row in rows} == {None}


def test_splits_are_read_together_or_alone(tmp_path: Path) -> None:
    train, test = dataset([picture(0), picture(1)]), dataset([picture(2)])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "data"))
    rows = index_rows(tmp_path / "data", tmp_path / "work")
    assert [row["shard"].split("-")[0] for row in rows] == ["test", "train", "train"]
    assert stored_pictures(tmp_path / "work") == [picture(2), picture(0), picture(1)]
    assert len(index_rows(tmp_path / "data/train", tmp_path / "other")) == 2
    joined = f"{tmp_path}/data/train::{tmp_path}/data/test/"
    assert len(index_rows(joined, tmp_path / "joined")) == 3


def test_record_batches_become_shards(tmp_path: Path) -> None:
    pictures = [picture(i) for i in range(7)]
    schema = pa.schema([("image", pa.large_binary()), ("text", pa.large_string())])
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as out, pa.ipc.new_stream(out, schema) as file:
        for begin in range(0, 7, 2):
            some = pictures[begin : begin + 2]
            file.write(pa.record_batch([some, ["x"] * len(some)], schema=schema))
    rows = index_rows(tmp_path / "c.arrow", tmp_path / "work", read=ReadOptions(shard_rows=3))
    assert list(shard_sizes(tmp_path / "work").values()) == [4, 3]
    assert [row["key"] for row in rows] == [f"{i:09d}" for i in range(7)]
    assert stored_pictures(tmp_path / "work") == pictures


def test_missing_broken_and_outside_pictures(tmp_path: Path) -> None:
    write_files(tmp_path, {"own.jpg": picture(5)})
    made = dataset([picture(0), None, b"no picture", picture(1)])
    table = made.data.table.append_column("extra", pa.array(["a", "b", "c", "d"]))
    cells = table["picture"].to_pylist()
    cells[0] = {"bytes": None, "path": str(tmp_path / "own.jpg")}
    column = pa.array(cells, table.schema.field("picture").type)
    write_arrow(tmp_path / "c.arrow", table.set_column(0, table.schema.field("picture"), column))
    index_rows(tmp_path / "c.arrow", tmp_path / "work", max_failure_rate=1.0)
    assert stored_pictures(tmp_path / "work") == [picture(5), picture(1)]
    assert left_out(tmp_path / "work") == {
        "row without a picture": 1,
        "unreadable picture: UnidentifiedImageError": 1,
    }


def test_what_cannot_be_read_is_refused_with_the_way_out(tmp_path: Path) -> None:
    dataset([picture(0)]).save_to_disk(str(tmp_path / "data"))
    file = tmp_path / "data/data-00000-of-00001.arrow"
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all()
        write_arrow(tmp_path / "new", table, compression="zstd")
    whole = file.read_bytes()
    shutil.move(tmp_path / "new", file)
    with pytest.raises(CapwrightError, match=r"has compressed record batches.*save_to_disk"):
        index_rows(tmp_path / "data", tmp_path / "work")
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CapwrightError, match=r"arrow is cut off \(.*\): fetch it again"):
        index_rows(tmp_path / "data", tmp_path / "work")
    file.write_bytes(b"ARROW1  " + whole)
    with pytest.raises(CapwrightError, match="is not an Arrow stream"):
        index_rows(tmp_path / "data", tmp_path / "work")
    (tmp_path / "data/state.json").write_text(
        json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]})
    )
    with pytest.raises(CapwrightError, match="holds a selection of the rows"):
        index_rows(tmp_path / "data", tmp_path / "work")


def test_no_rows_and_no_pictures(tmp_path: Path) -> None:
    dataset([]).save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(CapwrightError, match="has no rows"):
        index_rows(tmp_path / "empty", tmp_path / "work")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "texts"))
    with pytest.raises(CapwrightError, match="no column of pictures among 'text'"):
        index_rows(tmp_path / "texts", tmp_path / "work")


def test_a_folder_that_is_not_local_is_one_shard_a_file(tmp_path: Path) -> None:
    dataset([picture(i) for i in range(3)]).save_to_disk(str(tmp_path / "data"))
    fsspec.filesystem("memory").put(str(tmp_path / "data"), "/hf/data", recursive=True)
    index_rows("memory://hf/data", tmp_path / "work", read=ReadOptions(shard_rows=1))
    assert list(shard_sizes(tmp_path / "work").values()) == [3]
    assert stored_pictures(tmp_path / "work") == [picture(i) for i in range(3)]
