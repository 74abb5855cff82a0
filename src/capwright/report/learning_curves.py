"""Data-efficiency curves: how good an encoder is after learning from more and more labels.

Reads OUT/results.json of `capwright transfer`, one folder an encoder; writes one SVG that stands
alone, follows light and dark and has no script, and gives a table as text. Points are means over
seeds with Student's 95% intervals; the axis of items is logarithmic.

How many times fewer items an encoder needs than the first one: the first one's items at its largest
fraction, over those at which this encoder's curve (straight between points on the logarithmic axis)
first is as good.

Run: `capwright transfer curve OUT... --to FILE.svg`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json
from capwright.report.charts import spread, tag, ticks

METRICS = {
    "segmentation": "miou",
    "depth": "rmse",
    "normals": "mean_degrees",
    "classification": "acc1",
    "detection": "box_ap",
}
LOWER_IS_BETTER = ("rmse", "absrel", "log10", "mean_degrees", "median_degrees")
WIDTH, HEIGHT = 560.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 130.0, 30.0, 44.0
STYLE = """
svg { --ink: #1c1f23; --muted: #676d76; --line: #e4e2dd; --page: #ffffff; --c0: #0f766e;
  --c1: #c2791a; --c2: #5b83b5; --c3: #7a5bb5; --c4: #b3361f; --c5: #7c848f; }
@media (prefers-color-scheme: dark) { svg { --ink: #e8e6e1; --muted: #9aa0a8; --line: #30343a;
  --page: #15171a; --c0: #2fb3a5; --c1: #dd9a43; --c2: #7fa6d8; --c3: #a488db; --c4: #f08a72;
  --c5: #a3abb5; } }
text { font: 12px system-ui, sans-serif; fill: var(--ink); dominant-baseline: central; }
.small { font-size: 10.5px; fill: var(--muted); } .end { text-anchor: end; }
.middle { text-anchor: middle; } .page { fill: var(--page); }
.grid { stroke: var(--line); fill: none; } .curve { fill: none; stroke-width: 1.8; }
"""
COLOURS = 6


@dataclass(frozen=True, kw_only=True)
class Point:
    """One fraction, over all seeds."""

    items: int
    fraction: float
    mean: float
    interval95: float | None  # half width; None with one seed
    seeds: int


Curves = Mapping[str, Sequence[Point]]  # by encoder, points by rising items


@dataclass(frozen=True, kw_only=True)
class CurveSummary:
    """What was drawn, and the table of it."""

    metric: str
    dataset: str
    curves: Curves
    table: str


def run(
    sources: Sequence[Path],
    *,
    to: Path | None = None,
    metric: str | None = None,
    dataset: str | None = None,
) -> CurveSummary:
    """Read the folders, and write the plot where `to` says.

    `dataset` is a set with its split, such as scenes-seen; without, the first. Raises
    CapwrightError for a folder without results, and for folders that lack the metric or the set.
    """
    rows = {source: read_rows(source) for source in sources}
    first = next(iter(rows.values()))[0]
    metric = metric or METRICS.get(first["task"], next(iter(first["metrics"])))
    dataset = dataset or first["dataset"]
    curves = {
        name: points(rows[source], metric, dataset, source)
        for name, source in zip(names(sources), sources, strict=True)
    }
    if to is not None:
        with atomic_path(to) as temporary:
            temporary.write_text(plot(curves, f"{metric}, {dataset}"), encoding="utf-8")
    return CurveSummary(
        metric=metric, dataset=dataset, curves=curves, table=table(curves, metric, dataset)
    )


def read_rows(source: Path) -> list[dict[str, Any]]:
    """Rows of a folder's results.json."""
    content = read_json(source / "results.json")
    rows = content.get("summary") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise CapwrightError(
            f"{source}/results.json is not of `capwright transfer`: give the folders that its "
            "--out named"
        )
    return rows


def names(sources: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    longest = max(len(source.parts) for source in sources)
    for length in range(1, longest + 1):
        found = ["/".join(source.parts[-length:]) for source in sources]
        if len(set(found)) == len(found):
            return found
    raise CapwrightError("the same folder is named twice: name each once")


def points(
    rows: Sequence[Mapping[str, Any]], metric: str, dataset: str, source: Path
) -> list[Point]:
    """One point a fraction."""
    known = sorted({row["dataset"] for row in rows})
    chosen = [row for row in rows if row["dataset"] == dataset]
    if not chosen:
        raise CapwrightError(f"{source} has no results on {dataset!r}: it has {', '.join(known)}")
    metrics = [name for name in chosen[0]["metrics"] if "/" not in name]
    if metric not in chosen[0]["metrics"]:
        raise CapwrightError(f"{source} has no metric {metric!r}: it has {', '.join(metrics)}")
    found = [
        Point(
            items=row["options"]["items"],
            fraction=row["options"]["fraction"],
            mean=row["metrics"][metric],
            interval95=row["interval95"][metric],
            seeds=len(row["seeds"]),
        )
        for row in chosen
        if row["metrics"][metric] is not None
    ]
    return sorted(found, key=lambda point: point.items)


def table(curves: Curves, metric: str, dataset: str) -> str:
    """A row a fraction, a column an encoder, and how many times fewer items each needs."""
    fractions = sorted({point.fraction for curve in curves.values() for point in curve})
    lines = [["fraction", "items", *curves]]
    for fraction in fractions:
        cells = [_at(curve, fraction) for curve in curves.values()]
        items = next(str(cell.items) for cell in cells if cell)
        lines.append([f"{fraction:g}", items, *map(_value, cells)])
    if len(curves) > 1 and len(fractions) > 1:
        lower = metric in LOWER_IS_BETTER
        first = next(iter(curves.values()))
        saved = [times_fewer(first, curve, lower=lower) for curve in list(curves.values())[1:]]
        lines.append(["times fewer items than the first", "", "", *saved])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    return f"{metric}, {dataset}\n{text}\n"


def times_fewer(first: Sequence[Point], other: Sequence[Point], *, lower: bool) -> str:
    """How many times fewer items `other` needs for what `first` reaches with all of its."""
    sign = -1 if lower else 1
    goal = sign * first[-1].mean
    before: Point | None = None
    for point in other:
        if sign * point.mean >= goal:
            if before is None:
                return f"at least {first[-1].items / point.items:.1f}"
            way = (goal - sign * before.mean) / (sign * (point.mean - before.mean))
            items = before.items * (point.items / before.items) ** way
            return f"{first[-1].items / items:.1f}"
        before = point
    return "never as good"


def plot(curves: Curves, title: str) -> str:
    """The SVG."""
    every = [point for curve in curves.values() for point in curve]
    low = min(point.mean - (point.interval95 or 0) for point in every)
    high = max(point.mean + (point.interval95 or 0) for point in every)
    least, most = min(p.items for p in every), max(p.items for p in every)
    wide, span = math.log(most / least) or 1.0, (high - low) or 1.0

    def place(items: float, value: float) -> tuple[float, float]:
        x = LEFT + math.log(items / least) / wide * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (value - low) / span * (HEIGHT - TOP - BOTTOM)

    drawn = [
        tag("title", title),
        tag("style", Markup(STYLE)),
        tag("rect", class_="page", width=WIDTH, height=HEIGHT),
        tag("text", title, x=LEFT, y=14),
    ]
    for value in ticks(low, high, 5):
        y = place(least, value)[1]
        drawn.append(tag("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="grid"))
        drawn.append(tag("text", f"{value:g}", x=LEFT - 8, y=y, class_="end small"))
    base = HEIGHT - BOTTOM
    for items in dict.fromkeys(point.items for point in every):
        x = place(items, low)[0]
        drawn.append(tag("path", d=f"M{x:.1f} {base}v5", class_="grid"))
        drawn.append(tag("text", f"{items:,}", x=x, y=base + 14, class_="middle small"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(tag("text", "labelled items", x=middle, y=base + 32, class_="middle small"))
    ends = {name: place(curve[-1].items, curve[-1].mean)[1] for name, curve in curves.items()}
    labels = spread(ends, 14)
    for number, (name, curve) in enumerate(curves.items()):
        colour = f"var(--c{number % COLOURS})"
        drawn += _curve(curve, place, colour)
        drawn.append(
            tag("text", name, x=WIDTH - RIGHT + 12, y=labels[name], style=f"fill:{colour}")
        )
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    svg = tag(
        "svg", Markup("").join(drawn), xmlns="http://www.w3.org/2000/svg", viewBox=box, role="img"
    )
    return f"{svg}\n"


def _curve(curve: Sequence[Point], place: Any, colour: str) -> list[Markup]:
    line = "L".join("{:.1f} {:.1f}".format(*place(point.items, point.mean)) for point in curve)
    drawn = [tag("path", d=f"M{line}", class_="curve", style=f"stroke:{colour}")]
    for point in curve:
        x, y = place(point.items, point.mean)
        drawn.append(tag("circle", cx=x, cy=y, r=3, style=f"fill:{colour}"))
        if point.interval95:
            y0, y1 = (place(point.items, point.mean + s * point.interval95)[1] for s in (1, -1))
            mark = f"M{x:.1f} {y0:.1f}V{y1:.1f}"
            drawn.append(tag("path", d=mark, class_="curve", style=f"stroke:{colour};opacity:.6"))
    return drawn


def _at(curve: Sequence[Point], fraction: float) -> Point | None:
    return next((point for point in curve if point.fraction == fraction), None)


def _value(point: Point | None) -> str:
    if point is None:
        return "–"
    spread_of = "" if point.interval95 is None else f" ±{point.interval95:.4f}"
    return f"{point.mean:.4f}{spread_of}"
