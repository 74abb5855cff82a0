"""Where a picture's bytes lie, and reading them: a byte range of any file that fsspec opens, or a
cell of a parquet file.
"""

import threading
from collections import OrderedDict
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

MAX_OPEN_FILES = 64
CELLS = "cells of "  # begins the cache's name of a parquet file


class Place(NamedTuple):
    """Where the index says that a picture lies."""

    file: str
    """Any fsspec address."""
    offset: int
    """First byte, or the row where there is a column."""
    size: int
    """Bytes."""
    column: str | None
    """Column of a parquet file that holds the bytes, a field of a struct after a dot."""


def places(index: pa.Table) -> list[Place]:
    """The places of the pictures of some rows of the index."""
    columns = ("file", "image_offset", "image_size", "image_column")
    return [Place(*row) for row in zip(*(index[c].to_pylist() for c in columns), strict=True)]


class ByteReader:
    """Reads byte ranges and cells and keeps the last files open; each thread and each process has
    its own handles.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def read(self, file: str, offset: int, size: int, column: str | None = None) -> bytes:
        """Return `size` bytes at `offset` of a file, or the cell of a parquet file's row."""
        if column is not None:
            return self._cell(file, offset, column)
        stream = self._open(file)
        stream.seek(offset)
        return stream.read(size)

    def _open(self, file: str) -> BinaryIO:
        opened: BinaryIO | _Cells | None = self._recent(file)
        if opened is None:
            opened = fsspec.open(file, "rb").open()
            self._keep(file, opened)
        assert not isinstance(opened, _Cells)
        return opened

    def _cell(self, file: str, row: int, column: str) -> bytes:
        cells = self._recent(CELLS + file)
        if cells is None:
            cells = _Cells(fsspec.open(file, "rb").open())
            self._keep(CELLS + file, cells)
        assert isinstance(cells, _Cells)
        return cells.read(row, column)

    def _recent(self, name: str) -> "BinaryIO | _Cells | None":
        files = self._files()
        if name in files:
            files.move_to_end(name)
        return files.get(name)

    def _keep(self, name: str, opened: "BinaryIO | _Cells") -> None:
        files = self._files()
        files[name] = opened
        if len(files) > MAX_OPEN_FILES:
            files.popitem(last=False)[1].close()

    def _files(self) -> "OrderedDict[str, BinaryIO | _Cells]":
        found: OrderedDict[str, BinaryIO | _Cells] = self._local.__dict__.setdefault(
            "files", OrderedDict()
        )
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in self._local.__dict__.pop("files", {}).values():
            opened.close()


class _Cells:
    """A parquet file of which the last row group of one column is kept."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._file = pq.ParquetFile(stream)
        self._group: tuple[int, str] | None = None
        self._values: pa.ChunkedArray | None = None

    def read(self, row: int, column: str) -> bytes:
        group, first = 0, 0
        while row - first >= (rows := self._file.metadata.row_group(group).num_rows):
            group, first = group + 1, first + rows
        if self._group != (group, column):
            values = self._file.read_row_group(group, columns=[column]).column(0)
            for field in column.split(".")[1:]:
                values = pa.chunked_array([chunk.field(field) for chunk in values.chunks])
            self._group, self._values = (group, column), values
        assert self._values is not None
        found: bytes = self._values[row - first].as_py() or b""
        return found

    def close(self) -> None:
        self._stream.close()
