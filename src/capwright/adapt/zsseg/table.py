"""The results of a run as a page: every arm's numbers with intervals, and the sweep of the weight.

Reads nothing; writes OUT/results.md. Percent; ± is half of a 95% interval over seeds (Student's t).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capwright.core.files import atomic_path

COLUMNS = {"miou_seen": "seen", "miou_unseen": "unseen", "hiou": "harmonic mean"}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of what `results.summarise` gives."""
    with atomic_path(path) as temporary:
        temporary.write_text(markdown(rows), encoding="utf-8")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The tables of arms and of readings."""
    lines = _table(["arm", *COLUMNS.values(), "weight"], [_arm(row) for row in rows])
    for part in ("validation", "test"):
        names = readings(rows, part)
        if names:
            found = [_readings(row, part, names) for row in rows if _has(row, part)]
            lines += ["", f"Harmonic mean, {part}:", "", *_table(["arm", *names], found)]
    return "\n".join(lines) + "\n"


def readings(rows: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """The readings that some arm has, in the order they come in."""
    keys = (key for row in rows for key in row["metrics"] if key.startswith(f"{part}/"))
    return list(dict.fromkeys(key.split("/")[1] for key in keys))


def _arm(row: Mapping[str, Any]) -> list[str]:
    weight = row["metrics"].get("weight")
    cells = [_cell(row, name) for name in COLUMNS]
    return [row["options"]["arm"], *cells, "" if weight is None else f"{weight:.2f}"]


def _readings(row: Mapping[str, Any], part: str, names: Sequence[str]) -> list[str]:
    return [row["options"]["arm"], *(_cell(row, f"{part}/{name}/hiou") for name in names)]


def _has(row: Mapping[str, Any], part: str) -> bool:
    return any(key.startswith(f"{part}/") for key in row["metrics"])


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, half = row["metrics"].get(name), row["interval95"].get(name)
    if value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
