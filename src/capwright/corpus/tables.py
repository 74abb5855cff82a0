"""Reads parquet files that hold pictures: their bytes, or paths to files.

Bytes lie in a binary column or in a struct of `bytes` and `path`, as Hugging Face `datasets`
writes them, and are found again by file, row and column. Paths are absolute, relative to the
parquet file's folder, or fsspec addresses. A file is a shard; a file of more than `shard_rows`
rows is cut where its row groups end, and inside of those that are larger.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.corpus.addresses import TABLE_SUFFIXES, files_at, size_of, stem_of
from capwright.corpus.columns import ColumnMap, find_columns, image_feature, schema_kinds, text_row
from capwright.corpus.picture_files import picture_address, with_pictures
from capwright.corpus.pictures import PictureError, picture_row
from capwright.corpus.reader import ReadOptions, Shard

BATCH_ROWS = 64
BUFFER = 1 << 20  # bytes of a column that are read at once

TableRow = tuple[int, dict[str, Any], dict[str, Any]]
"""Row number, values by column, and the index's columns that say where its picture's bytes lie."""


def find(address: str, options: ReadOptions) -> list[Shard]:
    """The shards of the parquet files at an address; reads their footers alone."""
    shards = []
    for file in files_at(address, TABLE_SUFFIXES):
        size = size_of(file)
        with _open(file) as table:
            _columns(table, options, file)
            groups = _group_rows(table)
        shards += cut(file, size, stem_of(file), groups, options.shard_rows)
    if not shards:
        raise CapwrightError(f"{address!r} has no rows: expected a row for each picture")
    return shards


def read(shard: Shard, options: ReadOptions, failures: Failures) -> Iterator[dict[str, Any]]:
    """Rows of the index of one shard, in order."""
    with _open(shard.address) as table:
        columns = _columns(table, options, shard.address)
        yield from table_rows(_values(table, columns, shard), columns, shard.address, failures)


def table_rows(
    rows: Iterable[TableRow], columns: ColumnMap, file: str, failures: Failures
) -> Iterator[dict[str, Any]]:
    """Rows of the index for the rows of a table, whatever its pictures are."""
    if columns.kind == "string":
        yield from _rows_of_paths(rows, columns, file, failures)
    else:
        yield from _rows_of_bytes(rows, columns, file, failures)


def cut(
    file: str, size: int, name: str, groups: list[int], shard_rows: int, *, inside: bool = True
) -> list[Shard]:
    """Shards of about `shard_rows` rows of a file whose row groups have so many rows each.

    They end where row groups do; a larger group is cut into even parts, unless `inside` is false.
    """
    stops = [0]
    row = 0
    for rows in groups:
        parts = -(-rows // shard_rows) if inside else 1
        if parts > 1 and row > stops[-1]:
            stops.append(row)
        stops += [row + rows * i // parts for i in range(1, parts)]
        row += rows
        if parts > 1 or row - stops[-1] >= shard_rows:
            stops.append(row)
    if row > stops[-1]:
        stops.append(row)
    return [
        Shard(
            name=name if len(stops) == 2 else f"{name}-{i:05d}",
            address=file,
            size=size,
            start=start,
            stop=stop,
        )
        for i, (start, stop) in enumerate(itertools.pairwise(stops))
    ]


def _rows_of_bytes(
    rows: Iterable[TableRow], columns: ColumnMap, file: str, failures: Failures
) -> Iterator[dict[str, Any]]:
    """Pictures that lie in the table, or in a file where a cell has a path alone."""
    for number, values, place in rows:
        row = text_row(columns, values, number)
        data, path = _bytes_and_path(values[columns.picture])
        if row is None:
            failures.add("row without a key")
        elif data:
            try:
                found = picture_row(data)
            except PictureError as error:
                failures.add(str(error))
                continue
            failures.ok()
            yield {**row, **found, **place, "file": file, "image_size": len(data)}
        elif path:
            address = picture_address(file, path, number)
            yield from with_pictures([row], [address], failures)
        else:
            failures.add("row without a picture")


def _rows_of_paths(
    rows: Iterable[TableRow], columns: ColumnMap, file: str, failures: Failures
) -> Iterator[dict[str, Any]]:
    """Pictures that are files."""
    kept, addresses = [], []
    for number, values, _ in rows:
        row = text_row(columns, values, number)
        path = (values[columns.picture] or "").strip()
        if row is None or not path:
            failures.add("row without a key" if row is None else "row without a picture")
            continue
        kept.append(row)
        addresses.append(picture_address(file, path, number))
    yield from with_pictures(kept, addresses, failures)


def _bytes_and_path(value: Any) -> tuple[bytes, str]:
    """What a picture cell holds; b"" and "" for what is not there."""
    if isinstance(value, dict):
        return value.get("bytes") or b"", value.get("path") or ""
    return value or b"", ""


def _values(table: pq.ParquetFile, columns: ColumnMap, shard: Shard) -> Iterator[TableRow]:
    column = columns.picture + (".bytes" if columns.kind == "picture" else "")
    first = 0
    stop = table.metadata.num_rows if shard.stop is None else shard.stop
    for group, rows in enumerate(_group_rows(table)):
        if first < stop and first + rows > shard.start:
            number = first
            for batch in table.iter_batches(
                BATCH_ROWS, row_groups=[group], columns=columns.wanted, use_threads=False
            ):
                begin, end = max(0, shard.start - number), min(batch.num_rows, stop - number)
                wanted = batch.slice(begin, max(0, end - begin))
                for at, values in enumerate(wanted.to_pylist(), number + begin):
                    yield at, values, {"image_offset": at, "image_column": column}
                number += batch.num_rows
                if number >= stop:
                    break
        first += rows


def _columns(table: pq.ParquetFile, options: ReadOptions, where: str) -> ColumnMap:
    schema = table.schema_arrow
    return find_columns(schema_kinds(schema), options.columns, where, image_feature(schema))


def _group_rows(table: pq.ParquetFile) -> list[int]:
    metadata = table.metadata
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


@contextmanager
def _open(file: str) -> Iterator[pq.ParquetFile]:
    with fsspec.open(file, "rb") as stream:
        try:
            # both settings, or pyarrow holds a whole row group's bytes
            table = pq.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise CapwrightError(
                f"{file} is not a parquet file ({error}): remove it or write it again"
            ) from error
        yield table
