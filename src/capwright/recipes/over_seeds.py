"""Numbers of a study over seeds: means, Student's 95% intervals, and how tables print them.

A difference is the mean over seeds of paired differences. Reads and writes nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from capwright.evaluate.results import mean_interval

Found = dict[str, Any]  # mean, interval95


def summary(values: Iterable[float]) -> Found:
    """Mean and half width of the interval, None with one value."""
    mean, half = mean_interval(list(values))
    return {"mean": mean, "interval95": half}


def difference(own: Mapping[int, float], other: Mapping[int, float]) -> Found | None:
    """Mean of `own` minus `other` over the seeds that both have."""
    both = [seed for seed in own if seed in other]
    return summary(own[seed] - other[seed] for seed in both) if both else None


def value(found: Mapping[str, Any] | None, scale: float, digits: int, sign: str = "") -> str:
    """`12.3 ± 0.4`; empty where nothing was measured."""
    if found is None:
        return ""
    mean = round(scale * found["mean"], digits) + 0.0  # no -0.0
    text = f"{mean:{sign}.{digits}f}"
    half = found["interval95"]
    return text if half is None else f"{text} ± {scale * half:.{digits}f}"
