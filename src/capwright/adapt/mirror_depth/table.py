"""The arms side by side: means over the seeds, and each arm's difference to the mirror's.

The interval of a mean is Student's 95% over the seeds; that of a difference is the paired bootstrap
over test pictures (evaluate/outcomes.py), the seeds averaged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from capwright.adapt.mirror_depth.config import MIRROR
from capwright.evaluate.outcomes import Outcomes, difference_interval
from capwright.evaluate.results import Result

COLUMNS = {"rmse": "RMSE, m", "absrel": "AbsRel", "delta1": "δ1"}
COMPARED = ("rmse", "absrel")
Row = Mapping[str, Any]


def shown(row: Row) -> dict[str, float | None]:
    """The metrics of a summary's row that the table has."""
    return {name: row["metrics"][name] for name in COLUMNS}


def markdown(rows: Sequence[Row], found: Sequence[tuple[Result, Outcomes]]) -> str:
    """The table, an arm a line."""
    head = ["arm", "trained parameters", *COLUMNS.values()]
    head += [f"{COLUMNS[name]}, minus mirror's" for name in COMPARED]
    lines = [_line(head), _line(["---"] * len(head))]
    runs: dict[str, list[Outcomes]] = {}
    for result, outcomes in found:
        runs.setdefault(result.options["arm"], []).append(outcomes)
    means = {row["options"]["arm"]: row["metrics"] for row in rows}
    for row in rows:
        arm = row["options"]["arm"]
        cells = [f"`{arm}`", f"{row['options']['trained_parameters']:,}"]
        cells += [_mean(row, name) for name in COLUMNS]
        cells += [_difference(name, arm, means, runs) for name in COMPARED]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(row: Row, name: str) -> str:
    mean, half = row["metrics"][name], row["interval95"][name]
    if mean is None:
        return "not measured"
    return f"{mean:.4f}" if half is None else f"{mean:.4f} ± {half:.4f}"


def _difference(
    name: str,
    arm: str,
    means: Mapping[str, Mapping[str, float]],
    runs: Mapping[str, Sequence[Outcomes]],
) -> str:
    if MIRROR not in runs or arm == MIRROR:
        return "–"
    difference = means[arm][name] - means[MIRROR][name]
    interval = difference_interval(runs[MIRROR], runs[arm], name)
    if interval is None:
        return f"{difference:+.4f}"
    low, high = interval
    return f"{difference:+.4f} ({low:+.4f} to {high:+.4f})"
