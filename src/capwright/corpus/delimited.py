"""Reads CSV and TSV files that name pictures: open_clip's (`filepath`, `title`, tabs between) and
any other with a header line.

Paths are absolute, relative to the table's folder, or fsspec addresses. A file is cut into shards
of `shard_rows` rows; where each begins is found by one pass over the file, which a process keeps.
Quotes are as in RFC 4180 (a quoted cell may hold separators, line breaks and doubled quotes); a
quote inside an unquoted cell is a plain character. UTF-8, with or without a byte order mark.
"""

import csv
import functools
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec

from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.corpus.addresses import DELIMITED_SUFFIXES, files_at, size_of, stem_of
from capwright.corpus.columns import PICTURE_NAMES, TEXT_NAMES, ColumnMap, find_columns
from capwright.corpus.reader import ReadOptions, Shard
from capwright.corpus.tables import TableRow, table_rows

SEPARATORS = ("\t", ",", ";", "|")  # the first is open_clip's
BUFFER = 1 << 20
LONGEST_CELL = 1 << 20  # characters; a longer one is a quote that is never closed
UTF8_MARK, UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What one pass over a file finds."""

    separator: str
    header: tuple[str, ...]
    starts: tuple[int, ...]
    """Byte at which each shard begins."""
    rows: int


def find(address: str, options: ReadOptions) -> list[Shard]:
    """Shards of `shard_rows` rows of the CSV and TSV files at an address."""
    _layout.cache_clear()
    shards = []
    for file in files_at(address, DELIMITED_SUFFIXES):
        size = size_of(file)
        layout = _layout(file, size, options.separator, options.shard_rows)
        _columns(layout, options, file)
        for i in range(len(layout.starts)):
            start = i * options.shard_rows
            stop = min(start + options.shard_rows, layout.rows)
            name = f"{stem_of(file)}-{i:05d}"
            shards.append(Shard(name=name, address=file, size=size, start=start, stop=stop))
    if not shards:
        raise CapwrightError(
            f"{address!r} has a header but no rows: expected a row for each picture"
        )
    return shards


def read(shard: Shard, options: ReadOptions, failures: Failures) -> Iterator[dict[str, Any]]:
    """Rows of the index of one shard, in order."""
    layout = _layout(shard.address, shard.size, options.separator, options.shard_rows)
    columns = _columns(layout, options, shard.address)
    rows = _rows(shard, layout, options, failures)
    yield from table_rows(rows, columns, shard.address, failures)


def _rows(
    shard: Shard, layout: Layout, options: ReadOptions, failures: Failures
) -> Iterator[TableRow]:
    with _open(shard.address) as stream:
        stream.seek(layout.starts[shard.start // options.shard_rows])
        records = _Records(stream, layout.separator, shard.address)
        stop = layout.rows if shard.stop is None else shard.stop
        wanted = itertools.islice(records, stop - shard.start)
        for number, cells in enumerate(wanted, shard.start):
            reason = _fault(cells, layout)
            if reason:
                failures.add(reason)
            else:
                yield number, dict(zip(layout.header, cells, strict=True)), {}


def _fault(cells: list[str], layout: Layout) -> str:
    """Why a row cannot be read, or ""."""
    if len(cells) != len(layout.header):
        return "row with another number of columns than the header"
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return "row that is not UTF-8"
    return ""


def _columns(layout: Layout, options: ReadOptions, where: str) -> ColumnMap:
    return find_columns(dict.fromkeys(layout.header, "string"), options.columns, where)


@functools.lru_cache(maxsize=256)
def _layout(file: str, size: int, separator: str, shard_rows: int) -> Layout:
    """One pass over a file, kept for the shards that the process reads."""
    with _open(file) as stream:
        first = stream.readline()
        if first.startswith(UTF16_MARKS):
            raise CapwrightError(f"{file} is UTF-16: save it as UTF-8 and index it again")
        begin = len(UTF8_MARK) if first.startswith(UTF8_MARK) else 0
        separator = separator or _guess(first[begin:].decode("utf-8", "replace"))
        stream.seek(begin)
        records = _Records(stream, separator, file)
        header = tuple(name.strip() for name in next(records, []))
        starts, rows, last = [], 0, records.offset
        for _ in records:
            if rows % shard_rows == 0:
                starts.append(begin + last)
            rows, last = rows + 1, records.offset
        if records.unfinished():
            raise CapwrightError(
                f"{file} has a quote that is never closed, in row {rows} or before: close it, or "
                "write quotes inside a cell twice"
            )
    if not header:
        raise CapwrightError(f"{file} is empty: expected a header line and a row for each picture")
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise CapwrightError(f"{file} has two columns {double!r}: rename one of them")
    return Layout(separator=separator, header=header, starts=tuple(starts), rows=rows)


def _guess(header: str) -> str:
    """The separator that gives the most known names, then the most names."""
    known = {*PICTURE_NAMES, *TEXT_NAMES}

    def rank(separator: str) -> tuple[int, int]:
        names = next(csv.reader(header.splitlines(), delimiter=separator), [])
        return sum(name.strip().lower() in known for name in names), len(names)

    return max(SEPARATORS, key=rank)


class _Records:
    """The records of a CSV stream, and the number of bytes that they took so far."""

    def __init__(self, stream: BinaryIO, separator: str, where: str) -> None:
        if len(separator) != 1:
            raise CapwrightError(
                f"the separator is {separator!r}, but must be one character, such as a tab or ','"
            )
        self.offset = 0
        self._stream, self._where, self._separator = stream, where, separator
        self._lines: list[str] = []
        csv.field_size_limit(LONGEST_CELL)
        self._reader = csv.reader(self._decoded(), delimiter=separator)

    def _decoded(self) -> Iterator[str]:
        for line in self._stream:
            self.offset += len(line)
            text = line.decode("utf-8", "surrogateescape")
            self._lines.append(text)
            yield text

    def __iter__(self) -> "_Records":
        return self

    def __next__(self) -> list[str]:
        while True:
            before, self._lines = self._lines, []
            try:
                cells = next(self._reader)
            except StopIteration:
                self._lines = before
                raise
            except csv.Error as error:
                raise CapwrightError(
                    f"{self._where} is not a table near line {self._reader.line_num} ({error}): "
                    "check its quotes and line breaks, or name another --separator"
                ) from error
            if cells:  # an empty line is no row
                return cells

    def unfinished(self) -> bool:
        """Whether the last record ended with the file, in the middle of a quoted cell."""
        try:
            list(csv.reader(self._lines, delimiter=self._separator, strict=True))
        except csv.Error as error:
            return "unexpected end" in str(error)
        return False


def _open(file: str) -> BinaryIO:
    # fsspec's files of buckets read lines slowly
    return io.BufferedReader(fsspec.open(file, "rb").open(), BUFFER)
