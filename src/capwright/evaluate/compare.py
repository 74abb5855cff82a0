"""Results of several models → one table, with intervals over seeds and over pictures.

Reads results files, or folders with results files somewhere below them (a suite's, a demo's). Each
source is a column; one that holds several models is a column for each. A row is a metric of a task
on a data set, measured the same way (protocol and options). A value is the mean over seeds with its
95% interval (Student's t). Where per-picture outcomes lie beside the results (outcomes.py), the
difference to the first column gets a 95% interval by paired bootstrap over pictures; where that
leaves out 0, the difference is more than the choice of pictures.

Run: `capwright compare A B [--format markdown] [--out FILE]`.
"""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json
from capwright.evaluate.outcomes import Outcomes, difference_interval, read_outcomes
from capwright.evaluate.results import Result, mean_interval, parse_results

Format = Literal["text", "markdown", "csv", "html"]
FORMATS: tuple[Format, ...] = ("text", "markdown", "csv", "html")
TOLD_APART_BY = ("mode", "method", "fraction")  # options that a table names beside the task


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared, and how the table looks."""

    sources: tuple[Path, ...]  # results files or folders; the first is the reference
    format: Format = "text"
    out: Path | None = None  # also writes the table there
    details: bool = False  # metrics of single classes as well
    resamples: int = 2000  # of the bootstrap
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        if not self.sources:
            raise CapwrightError("nothing to compare: give results files or folders of them")
        if self.format not in FORMATS:
            raise CapwrightError(f"format {self.format!r}: allowed are {', '.join(FORMATS)}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one model."""

    mean: float | None
    interval95: float | None = None  # half width over seeds; None with one seed
    seeds: int = 1
    difference: float | None = None  # to the first column
    low: float | None = None  # 95% interval of the difference, over pictures
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of all models."""

    dataset: str
    task: str
    metric: str
    cells: Mapping[str, Cell]  # by column


@dataclass(frozen=True, kw_only=True)
class CompareSummary:
    """The table as numbers and as text."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    table: str


@dataclass(frozen=True, kw_only=True)
class _Run:
    result: Result
    outcomes: Outcomes | None


@dataclass
class _Group:
    """What was measured the same way, by column."""

    first: Result
    runs: dict[str, list[_Run]] = field(default_factory=dict)


def run(config: CompareConfig) -> CompareSummary:
    """Make the table."""
    columns = read_columns(config.sources)
    groups: dict[str, _Group] = {}
    for column, runs in columns.items():
        for one in runs:
            group = groups.setdefault(_identity(one.result), _Group(one.result))
            group.runs.setdefault(column, []).append(one)
    names = tuple(columns)
    rows = tuple(
        row
        for group in sorted(groups.values(), key=lambda g: (g.first.task, g.first.dataset))
        for row in _rows(group, names, config)
    )
    table = render(names, rows, config.format)
    if config.out is not None:
        with atomic_path(config.out) as temporary:
            temporary.write_text(table, encoding="utf-8")
    return CompareSummary(columns=names, rows=rows, table=table)


def read_columns(sources: Sequence[Path]) -> dict[str, list[_Run]]:
    """Results by column name; CapwrightError for a source without results."""
    columns: dict[str, list[_Run]] = {}
    for source in sources:
        runs = _read(source)
        if not runs:
            raise CapwrightError(
                f"{source} holds no results: give a results file of `capwright evaluate` or a "
                "folder with some"
            )
        models = {run.result.pretrained for run in runs}
        for run in runs:
            name = str(source) if len(models) == 1 else run.result.pretrained
            columns.setdefault(name, []).append(run)
    return columns


def render(columns: Sequence[str], rows: Sequence[Row], form: Format) -> str:
    """The table as text."""
    if form == "csv":
        return _csv(columns, rows)
    head = ["dataset", "task", "metric", columns[0]]
    for column in columns[1:]:
        head += [column, "difference"]
    lines = [head]
    for row in rows:
        line = [row.dataset, row.task, row.metric]
        for number, column in enumerate(columns):
            cell = row.cells.get(column)
            line.append(_value(cell))
            if number:
                line.append(_difference(cell))
        lines.append(line)
    return {"text": _text, "markdown": _markdown, "html": _html}[form](lines)


def _read(source: Path) -> list[_Run]:
    if not source.exists():
        raise CapwrightError(f"{source} does not exist: give a results file or a folder with some")
    files = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    runs: list[_Run] = []
    for file in files:
        rows = _result_rows(read_json(file))
        if rows is None:
            if not source.is_dir():
                raise CapwrightError(
                    f"{file} is no results file: expected a list of results, or an object with "
                    "`results`"
                )
            continue
        outcomes = read_outcomes(file.with_suffix(".npz"))
        for number, result in enumerate(parse_results(file, rows)):
            runs.append(_Run(result=result, outcomes=outcomes.get(number)))
    return runs


def _result_rows(content: Any) -> list[Any] | None:
    """The results in a file's content; None in one of another kind."""
    if isinstance(content, dict):
        content = content.get("results")
    if not isinstance(content, list) or not content:
        return None
    like = all(isinstance(row, dict) and {"metrics", "protocol"} <= row.keys() for row in content)
    return content if like else None


def _identity(result: Result) -> str:
    """Equal where two results differ in the model and the seed alone.

    (The inference of training-free segmentation follows from the protocol and the tower's size,
    and a data set has a name wherever it lies.)
    """
    options = {k: v for k, v in result.options.items() if k not in ("plan", "inference", "data")}
    protocol = (result.protocol.name, result.protocol.version)
    return digest([result.dataset, result.task, result.language, protocol, options])


def _rows(group: _Group, columns: Sequence[str], config: CompareConfig) -> list[Row]:
    names: dict[str, None] = {}
    for runs in group.runs.values():
        names |= dict.fromkeys(runs[0].result.metrics)
    return [
        Row(
            dataset=group.first.dataset,
            task=_task(group.first),
            metric=name,
            cells={
                column: _cell(group.runs.get(columns[0], []), group.runs[column], name, config)
                for column in columns
                if column in group.runs
            },
        )
        for name in names
        if config.details or not ("/" in name or name == "classes_counted")
    ]


def _task(result: Result) -> str:
    """The task with what tells its rows apart."""
    options = result.options
    kinds = [str(options[name]) for name in TOLD_APART_BY if name in options]
    if "method" in options:  # one name under two protocols
        kinds = [f"{result.protocol.name}/{result.protocol.version}", *kinds]
    return f"{result.task} ({', '.join(kinds)})" if kinds else result.task


def _cell(first: Sequence[_Run], own: Sequence[_Run], metric: str, config: CompareConfig) -> Cell:
    found, reference = _values(own, metric), _values(first, metric)
    if not found:
        return Cell(mean=None)
    mean, interval = mean_interval(found)
    cell = Cell(mean=mean, interval95=interval, seeds=len(found))
    if first is own or not reference:
        return cell
    low, high = _bounds(first, own, metric, config)
    return replace(cell, difference=mean - mean_interval(reference)[0], low=low, high=high)


def _values(runs: Sequence[_Run], metric: str) -> list[float]:
    values = (run.result.metrics.get(metric) for run in runs)
    return [value for value in values if value is not None]


def _bounds(
    first: Sequence[_Run], own: Sequence[_Run], metric: str, config: CompareConfig
) -> tuple[float | None, float | None]:
    before, after = (
        [run.outcomes for run in runs if run.outcomes is not None] for runs in (first, own)
    )
    if len(before) < len(first) or len(after) < len(own):
        return None, None
    bounds = difference_interval(
        before, after, metric, resamples=config.resamples, seed=config.seed
    )
    return bounds or (None, None)


def _value(cell: Cell | None) -> str:
    if cell is None or cell.mean is None:
        return "–"
    spread = "" if cell.interval95 is None else f" ±{cell.interval95:.4f}"
    return f"{cell.mean:.4f}{spread}"


def _difference(cell: Cell | None) -> str:
    if cell is None or cell.difference is None:
        return ""
    bounds = "" if cell.low is None else f" [{cell.low:+.4f}, {cell.high:+.4f}]"
    return f"{cell.difference:+.4f}{bounds}"


def _text(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join(rows) + "\n"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    cells.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _html(lines: Sequence[Sequence[str]]) -> str:
    rows = []
    for number, line in enumerate(lines):
        kind = "td" if number else "th"
        cells = "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in line)
        rows.append(f"<tr>{cells}</tr>\n")
    return f"<table>\n{''.join(rows)}</table>\n"


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """One line a metric and model, with full numbers."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    numbers = ("mean", "interval95", "seeds", "difference", "low", "high")
    writer.writerow(["dataset", "task", "metric", "model", *numbers])
    for row in rows:
        for column in columns:
            if column in row.cells:
                cell = row.cells[column]
                values = [getattr(cell, number) for number in numbers]
                writer.writerow([row.dataset, row.task, row.metric, column, *values])
    return stream.getvalue()
