"""What an evaluation says, in one JSON form: CLIP_benchmark's fields and their origin.

A results file is a list of objects `dataset, model, pretrained, task, metrics, language` plus
`protocol {name, version}`, `seed`, `samples_seen`, `code_revision` and `options` (what else the
numbers depend on, such as frozen or fine-tuned). One object per seed; `summarise` gives the mean
and its 95% interval over seeds. A protocol's numbers never change under the same version.
"""

import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError
from capwright.core.files import read_json, write_json

# 97.5% points of Student's t for 1, 2, ... degrees of freedom; beyond the last the normal's is near
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
         2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the numbers were measured; docs/protocols/ has a page for each."""

    name: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """The metrics of one model on one dataset with one seed."""

    dataset: str
    model: str  # the tower, as the checkpoint calls it
    pretrained: str  # the checkpoint, or "random"
    task: str
    metrics: Mapping[str, float | None]  # None where nothing could be measured
    protocol: Protocol
    seed: int
    samples_seen: int | None  # in pretraining; None where the checkpoint does not say
    code_revision: str
    language: str = "en"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if value is not None and not math.isfinite(value):
                raise CapwrightError(
                    f"metric {name!r} of {self.pretrained} on {self.dataset} is {value}: the model "
                    "gives no finite numbers, so pretrain it again with a lower learning rate"
                )


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write a results file, atomically."""
    write_json(path, [as_dict(result) for result in results])


def read_results(path: Path) -> list[Result]:
    """Read a results file; raises CapwrightError for a missing file or a row of another form."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise CapwrightError(f"{path} holds a {type(rows).__name__}: expected a list of results")
    return parse_results(path, rows)


def parse_results(path: Path, rows: Sequence[Any]) -> list[Result]:
    """Results from the rows of the file `path`; raises CapwrightError for one of another form."""
    return [_parse(path, number, row) for number, row in enumerate(rows)]


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One object per set of results that differ in their seed alone.

    `metrics` are means over seeds, `interval95` half widths of Student's 95% interval (None with
    one seed), `seeds` the seeds.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        same = {k: v for k, v in as_dict(result).items() if k not in ("metrics", "seed")}
        groups.setdefault(digest(same), []).append(result)
    return [_summary(group) for group in groups.values()]


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95% interval (Student's t); None for a single value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    quantile = T_975[n - 2] if n - 2 < len(T_975) else 1.96
    return mean, quantile * math.sqrt(variance / n)


@cache
def code_revision() -> str:
    """Version of the package, with the commit where it runs from a checkout: `0.1.0+g1a2b3c4`."""
    try:
        version = metadata.version("capwright")
    except metadata.PackageNotFoundError:
        version = "0"
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return version
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--match", ""]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+g{found.stdout.strip()}"


def _parse(path: Path, number: int, row: Any) -> Result:
    allowed = {f.name for f in fields(Result)}
    required = allowed - {"language", "options"}
    found = set(row) if isinstance(row, dict) else set()
    missing, unknown = sorted(required - found), sorted(found - allowed)
    if missing or unknown:
        fault = f"lacks {missing[0]}" if missing else f"has the unknown field {unknown[0]}"
        raise CapwrightError(
            f"result {number} of {path} {fault}: a result has {', '.join(sorted(allowed))}"
        )
    protocol, metrics = row["protocol"], row["metrics"]
    if not isinstance(protocol, dict) or set(protocol) != {"name", "version"}:
        raise CapwrightError(
            f"result {number} of {path} has the protocol {protocol!r}: "
            'expected {"name": "dense-probe", "version": "v1"}'
        )
    if not isinstance(metrics, dict) or not all(map(_is_metric, metrics.values())):
        raise CapwrightError(
            f"result {number} of {path} has the metrics {metrics!r}: expected names with numbers"
        )
    return Result(**{**row, "protocol": Protocol(**protocol)})


def _is_metric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _summary(group: Sequence[Result]) -> dict[str, Any]:
    metrics: dict[str, float | None] = {}
    interval: dict[str, float | None] = {}
    for name in group[0].metrics:
        values = [value for result in group if (value := result.metrics[name]) is not None]
        metrics[name], interval[name] = mean_interval(values) if values else (None, None)
    first = as_dict(group[0])
    del first["seed"]
    seeds = [result.seed for result in group]
    return {**first, "metrics": metrics, "interval95": interval, "seeds": seeds}
