"""The dense study's numbers as tables: means over seeds with Student's 95% intervals.

A difference is the mean over seeds of paired differences: the same seed has the same first weights,
the same order of pictures and the same labelled scenes. Reads and writes nothing. A cell is a
mapping with task, arm, seed, dataset, metrics and, for segmentation from words, protocol and
method, or for transfer the fraction of the labelled scenes and how many items that is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capwright.recipes.over_seeds import difference, summary, value
from capwright.report.learning_curves import Point, times_fewer

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
    """mIoU of every set, arm, protocol and method, and how far it is above CLIP as it is."""
    miou: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for cell in cells:
        if cell["task"] == TRAINING_FREE:
            key = (cell["dataset"], cell["arm"], cell["protocol"], cell["method"])
            miou.setdefault(key, {})[cell["seed"]] = cell["metrics"]["miou"]
    rows: list[Row] = []
    for (dataset, arm, protocol, method), by_seed in miou.items():
        clip = miou.get((dataset, arm, protocol, REFERENCE), {})
        rows.append(
            {
                "dataset": dataset,
                "arm": arm,
                "protocol": protocol,
                "method": method,
                "seeds": sorted(by_seed),
                "miou": summary(by_seed.values()),
                "above": difference(by_seed, clip) if method != REFERENCE else None,
            }
        )
    return rows


def transfer(cells: Sequence[Cell]) -> list[Row]:
    """A row a headline, arm and fraction, with the gain over the control."""
    rows: list[Row] = []
    for headline in HEADLINES:
        found: dict[tuple[str, float], dict[int, float]] = {}
        items: dict[float, int] = {}
        for cell in cells:
            number = cell["metrics"].get(headline.metric)
            if cell["task"] == headline.task and number is not None:
                key = (cell["arm"], cell["fraction"])
                found.setdefault(key, {})[cell["seed"]] = number
                items[cell["fraction"]] = cell["items"]
        for (arm, fraction), by_seed in sorted(found.items()):
            control = found.get((CONTROL, fraction), {})
            rows.append(
                {
                    "task": headline.task,
                    "metric": headline.metric,
                    "arm": arm,
                    "fraction": fraction,
                    "items": items[fraction],
                    "seeds": sorted(by_seed),
                    "value": summary(by_seed.values()),
                    "gain": difference(by_seed, control) if arm != CONTROL else None,
                }
            )
    return rows


def curves(rows: Sequence[Row], headline: Headline) -> dict[str, list[Point]]:
    """By arm, the control first, its points by rising items."""
    found: dict[str, list[Point]] = {}
    for row in sorted(rows, key=lambda row: (row["arm"] != CONTROL, row["items"])):
        if is_of(headline, row):
            point = Point(
                items=row["items"],
                fraction=row["fraction"],
                mean=row["value"]["mean"],
                interval95=row["value"]["interval95"],
                seeds=len(row["seeds"]),
            )
            found.setdefault(row["arm"], []).append(point)
    return found


def markdown(found: Mapping[str, Any]) -> str:
    """All tables, for the rows that there are."""
    parts = []
    words = found["training_free"]
    for dataset in dict.fromkeys(row["dataset"] for row in words):
        own = [row for row in words if row["dataset"] == dataset]
        parts += [f"## Segmentation from words: {dataset}, mIoU in %", training_free_table(own)]
    if found["transfer"]:
        parts.append("## Transfer")
    for headline in HEADLINES:
        rows = [row for row in found["transfer"] if is_of(headline, row)]
        if rows:
            parts += [f"### {headline.task}: {headline.title}", transfer_table(rows, headline)]
            parts += [_fewer(curves(rows, headline), headline)]
            parts += [f"![{headline.title}]({figure_name(headline)})"]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


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


def is_of(headline: Headline, row: Row) -> bool:
    """Whether a row is of a headline."""
    return (row["task"], row["metric"]) == (headline.task, headline.metric)


def _fewer(found: Mapping[str, Sequence[Point]], headline: Headline) -> str:
    """With how many times fewer labels ours is as good as the control with all of them."""
    ours, control = (found.get(arm, ()) for arm in (OURS, CONTROL))
    if len(ours) < 2 or not control:
        return ""
    times = times_fewer(control, ours, lower=not headline.higher)
    return f"Times fewer labels that `{OURS}` needs for what `{CONTROL}` reaches with all: {times}."
