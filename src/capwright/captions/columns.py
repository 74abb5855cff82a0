"""All that is known of a shard's pictures and captions, as DuckDB tables for SQL conditions.

Reads: the index and the sidecars of every score stage and of `dedup`. Writes nothing.

    samples     a row a picture: the index without `members`, and `uid` from its json
    duplicates  a row a picture, from the stage `dedup`, where that ran
    pictures    samples and duplicates side by side
    captions    a row for each (key, source, text) that a score stage has, or where there is none
                for each candidate (`candidates.py`): the stages' scores and columns, and those of
                its picture, whose own text is called `alt_text` here

The score of the stage score-clip is the column `clip`, of score-concepts `concepts`, of score-text
`text_score` (since `text` is taken); a stage's other columns keep their names, and one whose name
is taken is called STAGE_NAME. A `json` that cannot be read is null, so that `json ->> '$.width'`
works in a condition.

A shard at a time bounds the memory. Data comes in as arrow and is never part of an SQL text. The
connection is closed to the outside before anybody's SQL runs on it: no files, no extensions, no
Python variables, and no way to change that.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from capwright.captions.candidates import candidates, caption_stages
from capwright.captions.runner import stage_folder
from capwright.captions.subset import uids_of
from capwright.corpus.index import SCHEMA as INDEX_SCHEMA
from capwright.corpus.index import load_shard, shard_sizes
from capwright.corpus.sidecars import SCHEMA as SIDECAR_SCHEMA
from capwright.corpus.sidecars import has_sidecar, read_sidecars

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SCORE, DEDUP = "score-", "dedup"
KEY = ("key", "source", "text")
SETTINGS = {
    "threads": 1,
    "memory_limit": "2GB",
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}
LOCK = "SET enable_external_access = false; SET lock_configuration = true"
VALID_JSON = "CASE WHEN json_valid(json) THEN json END AS json"


def score_stages(work: Path) -> list[str]:
    """Names of the score stages of a work folder, sorted."""
    return sorted(f.name for f in (work / "captions").glob(f"{SCORE}*") if f.is_dir())


def open_shard(
    work: Path,
    shard: str,
    stages: Sequence[str] | None = None,
    human_field: str = "human_caption",
) -> "DuckDBPyConnection":
    """A closed connection with the tables of one shard; `stages` None takes all score stages.

    Rows lie in the order of the index, a picture's captions in that of the first stage. Raises
    CapwrightError where a stage has not finished the shard.
    """
    import duckdb

    chosen = score_stages(work) if stages is None else list(stages)
    connection = duckdb.connect(config=SETTINGS)
    _add_pictures(connection, work, shard)
    scored = [(stage, read_sidecars(stage_folder(work, stage), [shard])) for stage in chosen]
    _add_captions(connection, scored or [("", _unscored(work, shard, human_field))])
    connection.execute(LOCK)
    return connection


def each_shard(
    work: Path, query: str, stages: Sequence[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """The result of a query on every shard's tables, a shard at a time."""
    for shard in shard_sizes(work):
        with open_shard(work, shard, stages) as connection:
            yield shard, connection.sql(query).to_arrow_table()


def columns_of(connection: "DuckDBPyConnection", table: str) -> list[str]:
    """Names of a table's columns, in order."""
    return [row[0] for row in connection.execute(f"DESCRIBE {_quoted(table)}").fetchall()]


def _add_pictures(connection: "DuckDBPyConnection", work: Path, shard: str) -> None:
    index = load_shard(work, shard, [name for name in INDEX_SCHEMA.names if name != "members"])
    index = index.append_column("uid", pa.array(uids_of(index["json"].to_pylist()), pa.string()))
    _create(connection, "samples", f"SELECT * REPLACE ({VALID_JSON}) FROM raw", raw=index)
    duplicates = "SELECT NULL::VARCHAR AS key WHERE false"
    raw = index
    if has_sidecar(stage_folder(work, DEDUP), shard):
        raw = read_sidecars(stage_folder(work, DEDUP), [shard])
        own = [name for name in raw.column_names if name not in SIDECAR_SCHEMA.names]
        duplicates = f"SELECT {', '.join(map(_quoted, ['key', 'keep', *own]))} FROM raw"
    _create(connection, "duplicates", duplicates, raw=raw)
    _create(
        connection,
        "pictures",
        "SELECT samples.*, duplicates.* EXCLUDE (key) FROM samples "
        "LEFT JOIN duplicates ON samples.key = duplicates.key ORDER BY samples.rowid"
        if len(columns_of(connection, "duplicates")) > 1
        else "SELECT * FROM samples",
    )


def _unscored(work: Path, shard: str, human_field: str) -> pa.Table:
    """The candidates of a shard for which no score stage ran."""
    table = load_shard(work, shard, ["key", "shard", "text", "more_texts", "json"])
    found = candidates(work, caption_stages(work, complete=False), table, human_field)
    rows = [
        {"key": key, "source": candidate.source, "text": candidate.text}
        for key, some in found.items()
        for candidate in some
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in KEY]))


def _add_captions(connection: "DuckDBPyConnection", scored: Sequence[tuple[str, pa.Table]]) -> None:
    """Join the stages' rows with each other and their pictures."""
    taken = {*KEY, *columns_of(connection, "pictures")}
    columns, joins, known = [], [], []
    for number, (stage, table) in enumerate(scored):
        rows = f"stage{number}"
        place = pa.array(range(number << 32, (number << 32) + table.num_rows), pa.int64())
        _create(
            connection,
            rows,
            "SELECT DISTINCT ON (key, source, text) * FROM raw ORDER BY place_of_row",
            raw=table.append_column("place_of_row", place),
        )
        for field, name in _names(stage, table, taken).items():
            columns.append(f"{rows}.{_quoted(field)} AS {_quoted(name)}")
        joins.append(f"LEFT JOIN {rows} USING (key, source, text)")
        known.append(f"SELECT key, source, text, place_of_row FROM {rows}")
    picture = ["pictures.* EXCLUDE (key, shard, text)", "pictures.text AS alt_text"]
    select = ["pictures.shard", "known.key", "known.source", "known.text", *columns, *picture]
    _create(
        connection,
        "captions",
        f"WITH known AS (SELECT key, source, text, min(place_of_row) AS place "
        f"FROM ({' UNION ALL '.join(known)}) GROUP BY ALL) "
        f"SELECT {', '.join(select)} FROM known {' '.join(joins)} "
        "JOIN pictures ON pictures.key = known.key ORDER BY pictures.rowid, place",
    )
    for number in range(len(scored)):
        connection.execute(f"DROP TABLE stage{number}")


def _names(stage: str, table: pa.Table, taken: set[str]) -> dict[str, str]:
    """The stage's column to its name in `captions`; adds the names to `taken`, lower-case as SQL
    takes them."""
    prefix = re.sub(r"\W", "_", stage.removeprefix(SCORE))
    found: dict[str, str] = {}
    for field in table.column_names:
        if field == "score":
            found[field] = prefix if prefix.lower() not in taken else f"{prefix}_score"
        elif field not in SIDECAR_SCHEMA.names:
            found[field] = field if field.lower() not in taken else f"{prefix}_{field}"
        taken |= {name.lower() for name in found.values()}
    return found


def _create(
    connection: "DuckDBPyConnection", name: str, select: str, raw: pa.Table | None = None
) -> None:
    if raw is not None:
        connection.register("raw", raw)
    connection.execute(f"CREATE TABLE {name} AS {select}")
    if raw is not None:
        connection.unregister("raw")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
