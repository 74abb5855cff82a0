"""Reads what Hugging Face `datasets` leaves on a disk: a folder of `save_to_disk`, one with splits,
or the .arrow files of its cache.

    data/coco            a dataset, or all splits of a DatasetDict
    data/coco/train      one split

The files are Arrow streams, in which the pictures' bytes lie as they are. Each picture is found
again by its byte range, so neither `datasets` nor Arrow is needed to read it later. A local file is
mapped into memory and cut into shards of about `shard_rows` rows where its record batches end; a
file of a bucket is one shard, since its batches cannot be counted without fetching them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.corpus.addresses import address_of, files_at, size_of, split_corpus, stem_of
from capwright.corpus.columns import ColumnMap, find_columns, image_feature, schema_kinds
from capwright.corpus.reader import ReadOptions, Shard
from capwright.corpus.tables import BATCH_ROWS, TableRow, cut, table_rows

WAY_OUT = "load the dataset and write it again with save_to_disk or to_parquet"


def find(address: str, options: ReadOptions) -> list[Shard]:
    """The shards of the datasets at an address, called FOLDER-FILE."""
    shards = []
    for part in split_corpus(address):
        for file in _arrow_files(part):
            folder = file.rpartition("/")[0].rpartition("/")[2]
            name, size = f"{folder}-{stem_of(file)}", size_of(file)
            with _opened(file) as (stream, schema):
                _columns(schema, options, file)
                if isinstance(stream, pa.MemoryMappedFile):
                    groups = [batch.num_rows for batch, _, _ in _batches(stream, schema, file)]
                    shards += cut(file, size, name, groups, options.shard_rows, inside=False)
                else:
                    shards.append(Shard(name=name, address=file, size=size))
    if not shards:
        raise CapwrightError(f"{address!r} has no rows: expected a row for each picture")
    return shards


def read(shard: Shard, options: ReadOptions, failures: Failures) -> Iterator[dict[str, Any]]:
    """Rows of the index of one shard, in order."""
    with _opened(shard.address) as (stream, schema):
        columns = _columns(schema, options, shard.address)
        rows = _values(stream, schema, columns, shard)
        yield from table_rows(rows, columns, shard.address, failures)


def _arrow_files(part: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(part)
    splits = f"{path}/dataset_dict.json"
    state = f"{path}/state.json"
    if filesystem.exists(splits):
        names = json.loads(filesystem.cat_file(splits))["splits"]
        return [file for name in names for file in _arrow_files(f"{part.rstrip('/')}/{name}")]
    if filesystem.exists(state):
        listed = json.loads(filesystem.cat_file(state))
        if listed.get("_indices_data_files"):
            raise CapwrightError(f"{part} holds a selection of the rows of its files: {WAY_OUT}")
        files = [file["filename"] for file in listed["_data_files"]]
        return [address_of(filesystem, f"{path}/{file}") for file in files]
    return files_at(part, (".arrow",))


def _values(stream: Any, schema: pa.Schema, columns: ColumnMap, shard: Shard) -> Iterator[TableRow]:
    first = 0
    for batch, start_of_body, body in _batches(stream, schema, shard.address):
        stop = first + batch.num_rows if shard.stop is None else shard.stop
        if first >= shard.start and first < stop:
            offsets = _offsets(batch, columns, start_of_body, body, shard.address)
            wanted = batch.select(columns.wanted)
            for begin in range(0, batch.num_rows, BATCH_ROWS):
                for at, values in enumerate(wanted.slice(begin, BATCH_ROWS).to_pylist(), begin):
                    yield first + at, values, {"image_offset": offsets[at], "image_column": None}
        first += batch.num_rows


def _offsets(
    batch: pa.RecordBatch, columns: ColumnMap, start_of_body: int, body: Any, where: str
) -> list[int]:
    """The byte of the file at which each picture of a record batch begins."""
    column = batch.column(columns.picture)
    if columns.kind == "picture" and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    if columns.kind == "string" or not _is_bytes(column.type):
        return [0] * batch.num_rows  # paths alone
    _, ends, data = column.buffers()
    if data is None or data.size == 0:
        return [0] * batch.num_rows
    if not body.address <= data.address < body.address + body.size:
        raise CapwrightError(
            f"{where} has compressed record batches, in which no picture has a place of its own: "
            f"{WAY_OUT}"
        )
    large = pa.types.is_large_binary(column.type)
    begins = np.frombuffer(ends, np.int64 if large else np.int32)[column.offset :]
    base = start_of_body + data.address - body.address
    return (base + begins[: batch.num_rows].astype(np.int64)).tolist()  # type: ignore[no-any-return]


def _is_bytes(data_type: Any) -> bool:
    return bool(pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type))


def _batches(
    stream: Any, schema: pa.Schema, where: str
) -> Iterator[tuple[pa.RecordBatch, int, pa.Buffer]]:
    """Each record batch, the byte of the file at which its body begins, and the body."""
    while True:
        try:
            message = pa.ipc.read_message(stream)
        except EOFError:
            return
        except (pa.ArrowInvalid, OSError) as error:
            raise CapwrightError(f"{where} is cut off ({error}): fetch it again") from error
        if message.type != "record batch":
            raise CapwrightError(f"{where} has {message.type} messages: {WAY_OUT}")
        batch = pa.ipc.read_record_batch(message, schema)
        yield batch, stream.tell() - message.body.size, message.body


def _columns(schema: pa.Schema, options: ReadOptions, where: str) -> ColumnMap:
    return find_columns(schema_kinds(schema), options.columns, where, image_feature(schema))


@contextmanager
def _opened(file: str) -> Iterator[tuple[Any, pa.Schema]]:
    """The file behind its schema, and the schema."""
    filesystem, path = fsspec.core.url_to_fs(file)
    local = isinstance(filesystem, LocalFileSystem)
    source = pa.memory_map(path) if local else pa.PythonFile(filesystem.open(path, "rb"), "r")
    with source as stream:
        try:
            schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
        except (pa.ArrowInvalid, EOFError, OSError) as error:
            raise CapwrightError(f"{file} is not an Arrow stream ({error}): {WAY_OUT}") from error
        yield stream, schema
