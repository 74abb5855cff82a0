"""What a reader of a corpus format is: a module beside this file with `find` and `read`.

`webdataset.py`, `delimited.py`, `tables.py`, `huggingface.py` and `folder.py` are readers. Each
cuts what lies at an address into shards, which are the unit of work of every later stage, and
turns a shard into rows of the index. The index finds a reader by the name of its module.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from capwright.core.errors import CapwrightError
from capwright.core.failures import Failures

OUR_COLUMNS = ("text", "picture", "key")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A unit of work: one tar, or a run of rows of a table or of a folder's files."""

    name: str
    """Unique in the corpus; names the files of the index and of the sidecars."""
    address: str
    """What is read, any fsspec address."""
    size: int
    """Bytes at the address; another size means another corpus."""
    start: int = 0
    """First row of `address` that belongs to the shard."""
    stop: int | None = None
    """One past the last row; None is the end."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How a corpus is to be read, where its layout leaves a choice."""

    columns: dict[str, str] = field(default_factory=dict)
    """Our name (text, picture, key) to the column's name in the data; what is not named is
    found by the names that are common in the wild."""
    separator: str = ""
    """What separates columns of a CSV file; empty guesses."""
    shard_rows: int = 10_000
    """Samples a shard where the format has no shards of its own."""
    text_suffix: str = "txt"
    """Suffix of the file or member that holds the alt text."""

    def __post_init__(self) -> None:
        unknown = sorted(self.columns.keys() - set(OUR_COLUMNS))
        if unknown:
            raise CapwrightError(
                f"columns names {unknown[0]!r}, but allowed are {', '.join(OUR_COLUMNS)}: "
                "write for example --column text=caption"
            )
        if self.shard_rows < 1:
            raise CapwrightError(
                f"shard_rows is {self.shard_rows}, but must be at least 1: try 10000"
            )


class Reader(Protocol):
    """The two functions of a reader module."""

    def find(self, address: str, options: ReadOptions) -> list[Shard]:
        """The shards at an address, in order; reads names and sizes alone.

        Raises CapwrightError where nothing of this format lies there.
        """
        ...

    def read(
        self, shard: Shard, options: ReadOptions, failures: Failures
    ) -> Iterator[dict[str, Any]]:
        """Rows of the index of one shard, in order, without the column `shard`.

        A sample that cannot be read is counted in `failures` and left out.
        """
        ...


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """`text=re_caption` and the like as `ReadOptions.columns`; raises CapwrightError."""
    columns = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not equals or ours not in OUR_COLUMNS or (not theirs and ours != "key"):
            raise CapwrightError(
                f"--column {pair!r} names no column: write text=NAME, picture=NAME or key=NAME, "
                "or key= for row numbers"
            )
        columns[ours] = theirs
    return columns
