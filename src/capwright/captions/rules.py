"""Rules of `select`: SQL conditions over the columns of `columns.py` that drop what they hold for.

Reads: a shard's tables, a recipe's Python file. Writes nothing.

    Rule(name="junk", drop="junk <> ''")                         drops captions
    Rule(name="tiny", drop="least(width, height) < 64", scope="picture")   drops pictures
    Rule(name="weak", drop="clip < 0.8 * max(clip) OVER (PARTITION BY key)")

A condition is SQL on purpose: it comes from the user's recipe or command line, never from the
corpus, and runs where no file can be reached. It sees one shard at a time, so windows are over a
picture (PARTITION BY key). Where it is null (a score that is missing) nothing is dropped.
"""

import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from capwright.captions.columns import columns_of
from capwright.core.errors import CapwrightError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Scope = Literal["caption", "picture"]
EXAMPLE = "for example 'junk: junk <> '''"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is dropped, and under which name it is counted."""

    name: str
    """In the reason "dropped: NAME"."""
    drop: str
    """An SQL condition over the columns of captions or pictures."""
    scope: Scope = "caption"
    """Whether it drops captions or whole pictures."""

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.drop.strip():
            raise CapwrightError(
                f"rule {self.name!r} with the condition {self.drop!r} is not whole: "
                f"give it a name and a condition, {EXAMPLE}"
            )
        if self.scope not in get_args(Scope):
            raise CapwrightError(
                f"rule {self.name!r} has the scope {self.scope!r}, but must be for a caption or "
                "a picture"
            )


def parse_rule(text: str, scope: Scope = "caption") -> Rule:
    """A rule written as "name: condition"."""
    name, colon, condition = text.partition(":")
    if not colon:
        raise CapwrightError(f"rule {text!r} has no name: write name: condition, {EXAMPLE}")
    return Rule(name=name.strip(), drop=condition.strip(), scope=scope)


def load_rules(path: Path) -> tuple[Rule, ...]:
    """What `rules()` of a Python file returns; CapwrightError where there are none."""
    if not path.is_file():
        raise CapwrightError(f"the rules {path} are not a file: give the path of a Python file")
    make = runpy.run_path(str(path)).get("rules")
    found: Any = tuple(make()) if callable(make) else None
    if found is None or not all(isinstance(rule, Rule) for rule in found):
        raise CapwrightError(
            f"{path} has no function rules() that returns a list of capwright.captions.rules.Rule: "
            'write for example def rules(): return [Rule(name="junk", drop="junk <> '
            '")]'
        )
    return tuple(found)


def first_to_drop(
    connection: "DuckDBPyConnection", rules: Sequence[Rule], scope: Scope
) -> list[str]:
    """For every row of `captions` or `pictures`, in order: the first rule that drops it, or ""."""
    table = f"{scope}s"
    count = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
    names = np.full(count, "", object)
    for rule in reversed([rule for rule in rules if rule.scope == scope]):
        what = f"rule {rule.name!r}"
        dropped = evaluate(connection, table, f"({rule.drop}\n)", what, "BOOLEAN")
        names[np.ma.filled(dropped, False)] = rule.name
    found: list[str] = names.tolist()
    return found


def evaluate(
    connection: "DuckDBPyConnection", table: str, expression: str, what: str, kind: str
) -> npt.NDArray[Any]:
    """The value of a user's SQL expression for every row of a table, in order.

    Raises CapwrightError that names `what` it is for, DuckDB's reason and the allowed columns,
    where the expression is none or does not give values of the SQL type `kind`.
    """
    import duckdb

    query = f"SELECT {expression}\nAS value FROM {table} ORDER BY rowid"
    try:
        if len(connection.extract_statements(query)) != 1:
            raise CapwrightError(f"{what} has more than one SQL statement: write one condition")
        result = connection.execute(query)
        kinds = [str(column[1]) for column in result.description or ()]
        values: npt.NDArray[Any] = result.fetchnumpy()["value"] if kinds == [kind] else np.array([])
    except duckdb.Error as error:
        reason = str(error).splitlines()[0].rstrip("!.")
        raise CapwrightError(_refusal(connection, table, what, reason)) from error
    rows = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
    if kinds != [kind] or len(values) != rows:
        reason = f"it is {', '.join(kinds)} and not one {kind} a row"
        raise CapwrightError(_refusal(connection, table, what, reason))
    return values


def _refusal(connection: "DuckDBPyConnection", table: str, what: str, reason: str) -> str:
    columns = ", ".join(columns_of(connection, table))
    return (
        f"{what} cannot be used ({reason}): its columns are {columns}; `capwright score` and "
        "`capwright dedup` add theirs"
    )
