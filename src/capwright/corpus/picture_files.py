"""Pictures that lie in files of their own: where a path leads, and their bytes, many at once where
the file system can.

Reads any fsspec address. Used by every reader whose pictures are files.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import fsspec

from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures
from capwright.corpus.pictures import PictureError, picture_row

AT_ONCE = 32  # files that are asked for together from a file system that answers slowly


def picture_address(table: str, path: str, row: int) -> str:
    """Where a path in a row of the table at an address leads: it is absolute, relative to the
    table's folder, or an address.

    Raises CapwrightError for an address in the web.
    """
    if path.startswith(("http://", "https://")):
        raise CapwrightError(
            f"row {row} of {table} names a picture in the web ({path[:80]}): "
            "fetch the pictures first, for example with img2dataset, and index what it writes"
        )
    if "://" in path or path.startswith("/"):
        return path
    return table[: table.rfind("/") + 1] + path.removeprefix("./")


def read_files(addresses: Iterable[str]) -> Iterator[bytes | None]:
    """The files' bytes, in order; None where there is no such file."""
    located = (fsspec.core.url_to_fs(address) for address in addresses)
    for filesystem, group in itertools.groupby(located, key=lambda place: place[0]):
        at_once = AT_ONCE if filesystem.async_impl else 1
        paths = (path for _, path in group)
        while batch := list(itertools.islice(paths, at_once)):
            nothing = [None] * len(batch)
            for answer in filesystem.cat_ranges(batch, nothing, nothing, on_error="return"):
                if isinstance(answer, FileNotFoundError | IsADirectoryError | NotADirectoryError):
                    yield None
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    yield answer


def with_pictures(
    rows: Sequence[dict[str, Any]], addresses: Sequence[str], failures: Failures
) -> Iterator[dict[str, Any]]:
    """Each row with the picture in the file at its address; broken and missing ones are counted."""
    for row, address, data in zip(rows, addresses, read_files(addresses), strict=True):
        if data is None:
            failures.add("the picture's file is missing")
            continue
        try:
            found = picture_row(data)
        except PictureError as error:
            failures.add(str(error))
            continue
        failures.ok()
        yield {
            **row,
            **found,
            "file": address,
            "image_offset": 0,
            "image_size": len(data),
            "image_column": None,
        }
