"""Charts as inline SVG: bars with error bars, histograms in rows, curves. No script, no library.

Colours come from the page's style sheet through classes (`arm-quality`), so that a chart follows
light and dark. Every text passes through markupsafe; labels may be hostile.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 420  # view box units; a unit is about a pixel on a laptop, a little less on a phone
LABEL_WIDTH = 78
VALUE_WIDTH = 104


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar with its interval; `faint` draws it thinner, under the bar it belongs to."""

    label: str
    arm: str  # the colour
    value: float
    text: str  # the number as it is written
    interval: tuple[float, float] | None = None
    note: str = ""  # after the number, such as the change
    note_class: str = ""
    faint: bool = False


def tag(name: str, content: str = "", **attributes: str | float) -> Markup:
    """One element; `class_` and dashes as underscores, numbers to a tenth."""
    pairs = [Markup(' {}="{}"').format(_name(k), _number(v)) for k, v in attributes.items()]
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("").join(pairs), content)


def bars(rows: Sequence[Bar], title: str) -> Markup:
    """Horizontal bars from zero with error bars; nothing for no rows."""
    if not rows:
        return Markup("")
    room = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    top = max(max(row.value, row.interval[1] if row.interval else 0) for row in rows)
    scale = room / top if top > 0 else 0.0
    drawn, y = [], 4.0
    for row in rows:
        height = 7.0 if row.faint else 18.0
        y += 0 if row.faint or y == 4 else 10
        drawn.append(_bar(row, y, height, scale))
        y += height + 3
    return _figure(drawn, y + 2, title)


def _bar(row: Bar, y: float, height: float, scale: float) -> Markup:
    middle = y + height / 2
    length = max(row.value * scale, 0.0)
    parts = [
        tag("rect", x=LABEL_WIDTH, y=y, width=length, height=height, rx=2,
            class_=f"arm-{_class(row.arm)} {'faint' if row.faint else ''}".strip()),
    ]  # fmt: skip
    end = length
    if row.interval:
        low, high = (max(ends * scale, 0.0) for ends in row.interval)
        end = max(length, high)
        cap = height / 4
        path = (
            f"M{LABEL_WIDTH + low:.1f} {middle:.1f}H{LABEL_WIDTH + high:.1f}"
            f"M{LABEL_WIDTH + low:.1f} {middle - cap:.1f}v{2 * cap:.1f}"
            f"M{LABEL_WIDTH + high:.1f} {middle - cap:.1f}v{2 * cap:.1f}"
        )
        parts.append(tag("path", d=path, class_="whisker"))
    size = "small" if row.faint else ""
    x = LABEL_WIDTH + end + 6
    text = Markup("{}").format(row.text)
    if row.note:
        text += Markup(' <tspan class="{}">{}</tspan>').format(row.note_class, row.note)
    parts.append(tag("text", text, x=x, y=middle, class_=f"value {size}".strip()))
    parts.append(tag("text", row.label, x=LABEL_WIDTH - 8, y=middle, class_=f"end {size}".strip()))
    return Markup("").join(parts)


def histograms(
    edges: Sequence[float], counts: Mapping[str, Sequence[float]], names: Mapping[str, str]
) -> Markup:
    """One row a series over a common axis, with its median marked.

    Heights are square roots of shares of the series, so that a thin tail stays visible.
    """
    if not counts:
        return Markup("")
    left, right, row_height = 112.0, 44.0, 46.0
    room = WIDTH - left - right
    span = edges[-1] - edges[0] or 1.0

    def at(value: float) -> float:
        return left + (value - edges[0]) / span * room

    shares = {
        key: [math.sqrt(n / (sum(series) or 1)) for n in series] for key, series in counts.items()
    }
    top = max(max(series) for series in shares.values()) or 1.0
    drawn = []
    for number, (key, series) in enumerate(shares.items()):
        base = (number + 1) * row_height
        steps = "".join(
            f"V{base - share / top * (row_height - 8):.1f}H{at(edge):.1f}"
            for share, edge in zip(series, edges[1:], strict=True)
        )
        path = f"M{at(edges[0]):.1f} {base:.1f}{steps}V{base:.1f}Z"
        drawn.append(tag("path", d=path, class_=f"fill source-{_class(key)}"))
        drawn.append(tag("path", d=f"M{left} {base}H{WIDTH - right}", class_="axis"))
        name = names.get(key, key)
        drawn.append(tag("text", name, x=left - 10, y=base - 12, class_="end"))
        drawn.append(_median_mark(edges, counts[key], at, base, row_height))
    base = len(shares) * row_height
    drawn += [_tick(at(value), base, value) for value in ticks(edges[0], edges[-1], 5)]
    return _figure(drawn, base + 26, "Scores of captions by source")


def _median_mark(
    edges: Sequence[float],
    series: Sequence[float],
    at: Callable[[float], float],
    base: float,
    height: float,
) -> Markup:
    median = median_of(edges, series)
    if median is None:
        return Markup("")
    x = at(median)
    line = tag("path", d=f"M{x:.1f} {base:.1f}v{-(height - 8):.1f}", class_="whisker")
    return line + tag(
        "text", f"{round(median, 2) + 0.0:.2f}", x=WIDTH - 4, y=base - 12, class_="end value"
    )


def median_of(edges: Sequence[float], counts: Sequence[float]) -> float | None:
    """The median of binned values, by interpolation in its bin."""
    total = sum(counts)
    if total <= 0:
        return None
    passed = 0.0
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count and passed + count >= total / 2:
            return low + (high - low) * (total / 2 - passed) / count
        passed += count
    return edges[-1]


def curves(series: Mapping[str, Sequence[tuple[float, float]]], title: str) -> Markup:
    """Lines of (x, y) points, one an arm, with their names at their ends."""
    series = {arm: thinned(points) for arm, points in series.items() if len(points) > 1}
    if not series:
        return Markup("")
    left, right, top, bottom = 34.0, 66.0, 8.0, 170.0
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_max, y_low, y_high = max(xs) or 1.0, min(ys), max(ys)
    y_span = (y_high - y_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + x / x_max * (WIDTH - left - right),
            bottom - (y - y_low) / y_span * (bottom - top),
        )

    drawn = []
    for value in ticks(y_low, y_high, 4):
        _, y = place(0, value)
        drawn.append(tag("path", d=f"M{left} {y:.1f}H{WIDTH - right}", class_="grid"))
        drawn.append(tag("text", f"{value:g}", x=left - 6, y=y, class_="end small"))
    drawn += [_tick(place(x, 0)[0], bottom, x) for x in ticks(0, x_max, 4)]
    ends = {}
    for arm, points in series.items():
        line = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in points)
        drawn.append(tag("path", d=f"M{line}", class_=f"line arm-{_class(arm)}"))
        ends[arm] = place(*points[-1])
    for arm, y in spread({arm: y for arm, (_, y) in ends.items()}, 13).items():
        drawn.append(tag("text", arm, x=ends[arm][0] + 6, y=y, class_="small"))
    return _figure(drawn, bottom + 26, title)


def thinned(points: Sequence[tuple[float, float]], most: int = 120) -> list[tuple[float, float]]:
    """At most `most` points: means of equal runs, so that noise does not hide the course."""
    size = math.ceil(len(points) / most)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (math.fsum(x for x, _ in run) / len(run), math.fsum(y for _, y in run) / len(run))
        for run in runs
    ]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) in [low, high], roughly `about`."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _tick(x: float, base: float, value: float) -> Markup:
    mark = tag("path", d=f"M{x:.1f} {base:.1f}v4", class_="axis")
    return mark + tag("text", _short(value), x=x, y=base + 13, class_="middle small")


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def spread(places: Mapping[str, float], gap: float) -> dict[str, float]:
    """Move labels down until none is nearer than `gap` to the one above."""
    moved: dict[str, float] = {}
    last = -math.inf
    for name, y in sorted(places.items(), key=lambda item: item[1]):
        last = max(y, last + gap)
        moved[name] = last
    return moved


def _figure(drawn: Sequence[Markup], height: float, title: str) -> Markup:
    body = tag("title", title) + Markup("").join(drawn)
    box = f"0 0 {WIDTH} {height:.0f}"
    return tag("svg", body, viewBox=box, role="img", class_="chart")


def _class(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
