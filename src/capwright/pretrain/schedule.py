"""A number that may change while training: constant, or linear between points.

A point is (share of the run, value): `((0.8, 0), (0.8, 1))` is 0 for the first 80% of the samples
and 1 afterwards; `((0, 0.1), (0.1, 1))` rises over the first tenth and stays. Before the first
point and after the last the value is theirs."""

from collections.abc import Sequence

from capwright.core.errors import CapwrightError

Schedule = float | tuple[tuple[float, float], ...]


def value_at(schedule: Schedule, share: float) -> float:
    """The value when `share` of the samples are seen (0 to 1); at a jump the later one."""
    if isinstance(schedule, int | float):
        return float(schedule)
    before, after = schedule[0], schedule[-1]
    if share < before[0]:
        return float(before[1])
    for point in schedule:
        if point[0] <= share:
            before = point
        else:
            after = point
            break
    else:
        return float(before[1])
    way = (share - before[0]) / (after[0] - before[0])
    return float(before[1] + way * (after[1] - before[1]))


def always_zero(schedule: Schedule) -> bool:
    """Whether the value is 0 from the beginning to the end."""
    return not any(value for _, value in points(schedule))


def points(schedule: Schedule) -> Sequence[tuple[float, float]]:
    """The schedule's points; a constant has one."""
    return ((0.0, float(schedule)),) if isinstance(schedule, int | float) else schedule


def check(name: str, schedule: Schedule) -> None:
    """Raise CapwrightError for a schedule that goes back, leaves 0 to 1 or falls below 0."""
    shares = [share for share, _ in points(schedule)]
    if not shares or shares != sorted(shares) or shares[0] < 0 or shares[-1] > 1:
        raise CapwrightError(
            f"{name} has the schedule {schedule}: give a number, or points (share, value) with "
            "shares that rise from 0 to 1, such as [[0.8, 0], [0.8, 1]]"
        )
    if any(value < 0 for _, value in points(schedule)):
        raise CapwrightError(f"{name} has the schedule {schedule}: no value may be below 0")


def as_text(schedule: Schedule) -> str:
    """For a plan that a human reads: `1`, or `0 → 1 (from 80%)`."""
    if isinstance(schedule, int | float):
        return f"{schedule:g}"
    return ", ".join(f"{value:g} at {share:.0%}" for share, value in schedule)
