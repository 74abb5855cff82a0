"""Corpora in a bucket on moto's real S3 server: index, then read the pictures back by place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from capwright.core.errors import CapwrightError
from capwright.corpus.addresses import detect
from capwright.corpus.index import IndexConfig, find_shards, run
from capwright.corpus.reader import ReadOptions
from corpus_files import index_rows, picture, stored_pictures, tar_bytes


@pytest.fixture(scope="module")
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """A file system with an empty bucket `data`, found by the environment as on any machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        filesystem = fsspec.filesystem("s3")
        filesystem.mkdir("data")
        yield filesystem
    filesystem.clear_instance_cache()
    server.stop()


def test_tars(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for shard in range(2):
        members = [
            (f"{shard}{i}.{suffix}", data)
            for i in range(3)
            for suffix, data in (("jpg", picture(shard * 3 + i)), ("txt", b"a cow"))
        ]
        bucket.pipe(f"data/tars/{shard:05d}.tar", tar_bytes(members))
    rows = index_rows("s3://data/tars/{00000..00001}.tar", tmp_path / "work")
    assert [row["text"] for row in rows] == ["a cow"] * 6
    assert rows[0]["file"] == "s3://data/tars/00000.tar"
    assert stored_pictures(tmp_path / "work") == [picture(i) for i in range(6)]
    assert len(index_rows("s3://data/tars", tmp_path / "other")) == 6


def test_many_shards_by_braces_are_found_by_one_listing(
    bucket: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(12):
        bucket.pipe(f"data/many/{shard:05d}.tar", b"x")
    bucket.invalidate_cache()
    calls: list[str] = []
    call = type(bucket)._call_s3

    def counting(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        calls.append(method)
        return call(self, method, *arguments, **options)

    monkeypatch.setattr(type(bucket), "_call_s3", counting)
    corpus = "s3://data/many/{00000..00011}.tar"
    assert detect(corpus) == "webdataset"
    shards = find_shards(corpus, "webdataset", ReadOptions())
    assert [shard.size for shard in shards] == [1] * 12
    assert len(calls) < 12


def test_parquet(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    cells = [{"bytes": picture(i), "path": None} for i in range(5)]
    table = pa.table({"image": cells, "caption": list("abcde")})
    with bucket.open("data/tables/a.parquet", "wb") as file:
        pq.write_table(table, file, row_group_size=2)
    rows = index_rows("s3://data/tables/*.parquet", tmp_path / "work")
    assert "".join(row["text"] for row in rows) == "abcde"
    assert stored_pictures(tmp_path / "work") == [picture(i) for i in range(5)]


def test_csv_with_pictures_beside_it(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for i in range(10):
        bucket.pipe(f"data/csv/pictures/ü {i}.JPG", picture(i))
    lines = [f"pictures/ü {i}.JPG\ttext {i}" for i in range(10)]
    lines.append("pictures/gone.jpg\tmissing")
    bucket.pipe("data/csv/a.tsv", "\n".join(["filepath\ttitle", *lines]).encode())
    rows = index_rows("s3://data/csv/a.tsv", tmp_path / "work", max_failure_rate=0.5)
    assert [row["text"] for row in rows] == [f"text {i}" for i in range(10)]
    assert stored_pictures(tmp_path / "work") == [picture(i) for i in range(10)]


def test_folder(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    bucket.pipe({"data/pics/x/a.jpg": picture(0), "data/pics/x/a.txt": b"a cow"})
    (row,) = index_rows("s3://data/pics", tmp_path / "work")
    assert (row["key"], row["text"], row["file"]) == ("x/a", "a cow", "s3://data/pics/x/a.jpg")
    assert stored_pictures(tmp_path / "work") == [picture(0)]


def test_nothing_there_is_one_sentence(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="no shards in 's3://data/none'"):
        run(IndexConfig(corpus="s3://data/none", work=tmp_path / "work"))
