"""The dense study's numbers as tables: means over seeds with Student's 95% intervals.

A difference is the mean over seeds of paired differences: the same seed has the same first weights,
the same order of pictures and the same labelled scenes. `fewer_labels` says with how many times
fewer labels an arm is as good as another one with all of them: the mean curve of the arm, linear
in the logarithm of the number of labels, is read where it reaches the other's last point.

Reads and writes nothing. A cell is a mapping with task, arm, seed, metrics and, for segmentation
from words, protocol and method, or for transfer the fraction of the labels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capwright.evaluate.results import mean_interval

TRAINING_FREE = "training-free"
REFERENCE = "clip"  # the method that the others are compared with
CONTROL, OURS = "alt", "quality"  # the arms that are compared
Cell = Mapping[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One number of a task."""

    task: str
    metric: str  # as the task's results call it
    title: str
    scale: float = 1.0  # of what is printed
    digits: int = 1
    higher: bool = True  # is better


HEADLINES = (
    Headline(task="segmentation", metric="miou", title="mIoU, % ↑", scale=100),
    Headline(task="depth", metric="rmse", title="RMSE, m ↓", digits=2, higher=False),
    Headline(task="detection", metric="box_ap", title="box AP, % ↑", scale=100),
    Headline(task="detection", metric="mask_ap", title="mask AP, % ↑", scale=100),
    Headline(task="normals", metric="mean_degrees", title="mean angle, ° ↓", higher=False),
)


def training_free(cells: Sequence[Cell]) -> list[Row]:
    """mIoU of every arm, protocol and method, and how far it is above CLIP as it is."""
    miou: dict[tuple[str, str, str], dict[int, float]] = {}
    for cell in cells:
        if cell["task"] == TRAINING_FREE:
            key = (cell["arm"], cell["protocol"], cell["method"])
            miou.setdefault(key, {})[cell["seed"]] = cell["metrics"]["miou"]
    return [
        {
            "arm": arm,
            "protocol": protocol,
            "method": method,
            "seeds": sorted(by_seed),
            "miou": summary(by_seed.values()),
            "above": difference(by_seed, miou.get((arm, protocol, REFERENCE), {}))
            if method != REFERENCE
            else None,
        }
        for (arm, protocol, method), by_seed in miou.items()
    ]


def transfer(cells: Sequence[Cell]) -> list[Row]:
    """A row a headline, arm and fraction, with the gain over the control."""
    rows: list[Row] = []
    for headline in HEADLINES:
        found: dict[tuple[str, float], dict[int, float]] = {}
        for cell in cells:
            number = cell["metrics"].get(headline.metric)
            if cell["task"] == headline.task and number is not None:
                key = (cell["arm"], cell["fraction"])
                found.setdefault(key, {})[cell["seed"]] = number
        for (arm, fraction), by_seed in sorted(found.items()):
            control = found.get((CONTROL, fraction), {})
            rows.append(
                {
                    "task": headline.task,
                    "metric": headline.metric,
                    "arm": arm,
                    "fraction": fraction,
                    "seeds": sorted(by_seed),
                    "value": summary(by_seed.values()),
                    "gain": difference(by_seed, control) if arm != CONTROL else None,
                }
            )
    return rows


def fewer_labels(rows: Sequence[Row]) -> list[Row]:
    """With how many times fewer labels our arm is as good as the control with all of them."""
    found: list[Row] = []
    for headline in HEADLINES:
        ours, control = (curve(rows, headline, arm) for arm in (OURS, CONTROL))
        if len(ours) > 1 and control:
            reached = reach(ours, control[-1][1], higher=headline.higher)
            found.append(
                {
                    "task": headline.task,
                    "metric": headline.metric,
                    "times": None if reached is None else control[-1][0] / reached,
                    "at_least": reached == ours[0][0],
                }
            )
    return found


def curve(rows: Sequence[Row], headline: Headline, arm: str) -> list[tuple[float, float]]:
    """(fraction, mean) of an arm, fewest labels first."""
    key = (headline.task, headline.metric, arm)
    chosen = [row for row in rows if (row["task"], row["metric"], row["arm"]) == key]
    return sorted((row["fraction"], row["value"]["mean"]) for row in chosen)


def reach(
    points: Sequence[tuple[float, float]], target: float, *, higher: bool = True
) -> float | None:
    """The first x at which a curve is as good as `target`; None where it never is."""
    sign = 1 if higher else -1
    before: tuple[float, float] | None = None
    for x, y in points:
        good, wanted = sign * y, sign * target
        if good >= wanted:
            if before is None or before[1] == good:
                return x
            share = (wanted - before[1]) / (good - before[1])
            return math.exp(math.log(before[0]) + share * (math.log(x) - math.log(before[0])))
        before = (x, good)
    return None


def summary(values: Iterable[float]) -> Row:
    """Mean and half width of the interval, None with one value."""
    mean, half = mean_interval(list(values))
    return {"mean": mean, "interval95": half}


def difference(own: Mapping[int, float], other: Mapping[int, float]) -> Row | None:
    """Mean of `own` minus `other` over the seeds that both have."""
    both = [seed for seed in own if seed in other]
    return summary(own[seed] - other[seed] for seed in both) if both else None


def markdown(found: Mapping[str, Any]) -> str:
    """All tables, for the rows that there are."""
    parts = []
    if found["training_free"]:
        parts += ["## Segmentation from words", training_free_table(found["training_free"])]
    if found["transfer"]:
        parts.append("## Transfer")
    for headline in HEADLINES:
        rows = [row for row in found["transfer"] if _is(headline, row)]
        if rows:
            parts += [f"### {headline.task}: {headline.title}", transfer_table(rows, headline)]
            parts += [_sentence(row) for row in found["fewer_labels"] if _is(headline, row)]
            parts.append(f"![{headline.title}]({figure_name(headline)})")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def figure_name(headline: Headline) -> str:
    """File of a headline's curves."""
    return f"{headline.task}-{headline.metric}.svg".replace("_", "-")


def training_free_table(rows: Sequence[Row]) -> str:
    """A row a method, two columns (mIoU, above CLIP) for each arm and protocol."""
    columns = list(dict.fromkeys((row["arm"], row["protocol"]) for row in rows))
    at = {(row["arm"], row["protocol"], row["method"]): row for row in rows}
    heads = [f"`{arm}`, {protocol} | above `{REFERENCE}`" for arm, protocol in columns]
    lines = [f"| method | {' | '.join(heads)} |", "|" + "---|" * (1 + 2 * len(columns))]
    for method in dict.fromkeys(row["method"] for row in rows):
        line = [f"`{method}`"]
        for column in columns:
            row = at.get((*column, method), {})
            line += [value(row.get("miou"), 100, 1), value(row.get("above"), 100, 1, "+")]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join([*lines, ""])


def transfer_table(rows: Sequence[Row], headline: Headline) -> str:
    """A row an arm, and one for our arm's gain over the control; a column a fraction."""
    fractions = sorted({row["fraction"] for row in rows})
    at = {(row["arm"], row["fraction"]): row for row in rows}
    lines = [
        f"| labels | {' | '.join(f'{100 * fraction:g}%' for fraction in fractions)} |",
        "|" + "---|" * (1 + len(fractions)),
    ]
    shown = [(f"`{arm}`", arm, "value", "") for arm in dict.fromkeys(row["arm"] for row in rows)]
    if OURS in {row["arm"] for row in rows}:
        shown.append((f"`{OURS}` - `{CONTROL}`", OURS, "gain", "+"))
    for title, arm, name, sign in shown:
        cells = [at.get((arm, fraction), {}).get(name) for fraction in fractions]
        texts = [value(cell, headline.scale, headline.digits, sign) for cell in cells]
        lines.append(f"| {title} | {' | '.join(texts)} |")
    return "\n".join([*lines, ""])


def value(found: Mapping[str, Any] | None, scale: float, digits: int, sign: str = "") -> str:
    """`12.3 ± 0.4`; empty where nothing was measured."""
    if found is None:
        return ""
    text = f"{scale * found['mean']:{sign}.{digits}f}"
    half = found["interval95"]
    return text if half is None else f"{text} ± {scale * half:.{digits}f}"


def _is(headline: Headline, row: Row) -> bool:
    return (row["task"], row["metric"]) == (headline.task, headline.metric)


def _sentence(row: Row) -> str:
    if row["times"] is None:
        return f"`{OURS}` does not reach `{CONTROL}` with all labels."
    most = "at least " if row["at_least"] else ""
    return (
        f"`{OURS}` is as good as `{CONTROL}` with all labels when it has {most}{row['times']:.1f} "
        "times fewer."
    )
