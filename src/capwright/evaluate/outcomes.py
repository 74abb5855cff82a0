"""What each picture contributed to a metric, kept to compare models picture by picture.

A metric that is a ratio of sums over pictures (a share of hits, a mean of errors, an IoU of counted
pixels) is stored as the parts and wholes of every picture: it is sum(part) / sum(whole), and the
mean of that over classes where there are several. Resampling pictures with replacement then gives
paired bootstrap intervals (Efron 1979): both models are always scored on the same resample.
Average precision is no such ratio: it keeps the hits in their order (matches.py).

Writes NAME.npz beside the results NAME.json: of row 3 of the results the arrays `3/keys`,
`3/METRIC/part`, `3/METRIC/whole` and, where a picture counts in one class alone, `3/METRIC/group`;
of average precision `3/METRIC/` `picture`, `class`, `state` and `truths`.

Shapes: N pictures, C classes, R resamples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.evaluate.dense_metrics import confusion_matrix
from capwright.evaluate.matches import Matches

RESAMPLES = 2000
CHUNK = 50  # resamples in memory at a time


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The parts and wholes of one metric, [N] or [N, C]; with groups [N] of numbers below C."""

    part: NDArray[Any]
    whole: NDArray[Any]
    group_N: NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        assert len(self.part) == len(self.whole)

    def __len__(self) -> int:
        return len(self.part)

    def reordered(self, order_N: NDArray[np.integer]) -> "Outcome":
        """The same with picture `order_N[n]` at place n."""
        group_N = None if self.group_N is None else self.group_N[order_N]
        return Outcome(part=self.part[order_N], whole=self.whole[order_N], group_N=group_N)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """All metrics of one result, over the same pictures."""

    keys: tuple[str, ...]
    metrics: Mapping[str, Outcome]
    precisions: Mapping[str, Matches] = field(default_factory=dict)  # metrics that are APs

    def __post_init__(self) -> None:
        for name, outcome in self.all.items():
            assert len(outcome) == len(self.keys), name

    @property
    def all(self) -> dict[str, Outcome | Matches]:
        """Both kinds by name."""
        return {**self.metrics, **self.precisions}


def hits(hit_N: NDArray[np.bool_], group_N: NDArray[np.integer] | None = None) -> Outcome:
    """A share of hits, or with classes the mean over classes of their shares."""
    return Outcome(part=hit_N, whole=np.ones(len(hit_N), np.uint8), group_N=group_N)


def segmentation_outcomes(
    keys: Sequence[str],
    pred_NHW: Sequence[NDArray[np.integer]],
    true_NHW: Sequence[NDArray[np.integer]],
    classes: int,
) -> Outcomes:
    """`miou`, `macc` and `aacc` as dense_metrics.py has them; pictures may differ in size."""
    confusions_NCC = np.stack(
        [confusion_matrix(p, t, classes) for p, t in zip(pred_NHW, true_NHW, strict=True)]
    )
    hits_NC = np.einsum("ncc->nc", confusions_NCC)
    return counted_outcomes(keys, hits_NC, confusions_NCC.sum(axis=2), confusions_NCC.sum(axis=1))


def counted_outcomes(
    keys: Sequence[str],
    hits_NC: NDArray[np.integer],
    true_NC: NDArray[np.integer],
    pred_NC: NDArray[np.integer],
) -> Outcomes:
    """`miou`, `macc` and `aacc` from each picture's pixels: right, labelled and predicted."""
    return Outcomes(
        keys=tuple(keys),
        metrics={
            "miou": Outcome(part=hits_NC, whole=true_NC + pred_NC - hits_NC),
            "macc": Outcome(part=hits_NC, whole=true_NC),
            "aacc": Outcome(part=hits_NC.sum(axis=1), whole=true_NC.sum(axis=1)),
        },
    )


def mean_outcomes(
    keys: Sequence[str], rows: Sequence[Mapping[str, float] | None], names: Sequence[str]
) -> Outcomes:
    """Metrics that are means over pictures, from one row a picture; None leaves a picture out."""
    whole_N = np.array([row is not None for row in rows], np.uint8)
    parts = {name: np.array([row[name] if row else 0.0 for row in rows]) for name in names}
    return Outcomes(
        keys=tuple(keys),
        metrics={name: Outcome(part=part, whole=whole_N) for name, part in parts.items()},
    )


def write_outcomes(path: Path, rows: Sequence[Outcomes]) -> None:
    """Store the outcomes of the results in their order, atomically."""
    arrays: dict[str, NDArray[Any]] = {}
    for number, row in enumerate(rows):
        arrays[f"{number}/keys"] = np.array(row.keys, np.str_)
        for name, outcome in row.all.items():
            arrays |= {f"{number}/{name}/{part}": a for part, a in _arrays(outcome).items()}
    # a stream, since numpy adds .npz to a name that ends otherwise
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_outcomes(path: Path) -> dict[int, Outcomes]:
    """Outcomes by the number of their result; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise CapwrightError(
            f"{path} cannot be read ({error}): delete it with its results and evaluate again"
        ) from error
    numbers = [int(name.removesuffix("/keys")) for name in arrays if name.endswith("/keys")]
    return {number: _outcomes(arrays, number) for number in numbers}


def values(outcome: Outcome | Matches, weight_RN: NDArray[np.number]) -> NDArray[np.float64]:
    """The metric [R] where picture n counts `weight_RN[r, n]` times; nan where nothing counts."""
    if isinstance(outcome, Matches):
        return outcome.values(weight_RN)
    part_RC, whole_RC = (_sums(array, outcome.group_N, weight_RN) for array in _pair(outcome))
    counted_RC = whole_RC > 0
    ratio_RC = np.divide(part_RC, whole_RC, out=np.zeros_like(part_RC), where=counted_RC)
    classes_R = counted_RC.sum(axis=1)
    return np.where(classes_R > 0, ratio_RC.sum(axis=1) / np.maximum(classes_R, 1), np.nan)


def difference_interval(
    first: Sequence[Outcomes],
    other: Sequence[Outcomes],
    metric: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95% interval of `other` minus `first`, each the mean over its runs (seeds).

    None where the runs are not of the same pictures, or one lacks the metric.
    """
    runs = [*first, *other]
    keys = sorted(runs[0].keys) if runs else []
    if not (first and other and keys):
        return None
    if any(metric not in run.all or sorted(run.keys) != keys for run in runs):
        return None
    before, after = ([_in_order(run, metric) for run in side] for side in (first, other))
    found = [
        _mean([values(o, w) for o in after]) - _mean([values(o, w) for o in before])
        for w in _weights(len(keys), resamples, seed)
    ]
    low, high = np.nanpercentile(np.concatenate(found), [2.5, 97.5])
    return float(low), float(high)


def _weights(pictures: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each picture is drawn in each resample, CHUNK resamples at a time."""
    rng = np.random.default_rng(seed)
    chances = np.full(pictures, 1 / pictures)
    for start in range(0, resamples, CHUNK):
        yield rng.multinomial(pictures, chances, size=min(CHUNK, resamples - start))


def _in_order(run: Outcomes, metric: str) -> Outcome | Matches:
    """A metric with its pictures in the order of their keys."""
    order = np.array(sorted(range(len(run.keys)), key=run.keys.__getitem__))
    return run.all[metric].reordered(order)


def _pair(outcome: Outcome) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return outcome.part.astype(np.float64), outcome.whole.astype(np.float64)


def _sums(
    array: NDArray[np.float64],
    group_N: NDArray[np.integer] | None,
    weight_RN: NDArray[np.number],
) -> NDArray[np.float64]:
    if group_N is None:
        sums_RC: NDArray[np.float64] = weight_RN.astype(np.float64) @ array.reshape(len(array), -1)
        return sums_RC
    count = int(group_N.max()) + 1
    return np.stack([np.bincount(group_N, weight * array, count) for weight in weight_RN])


def _mean(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.mean(np.stack(arrays), axis=0)
    return mean


def _arrays(outcome: Outcome | Matches) -> dict[str, NDArray[Any]]:
    if isinstance(outcome, Matches):
        return {
            "picture": outcome.picture_D,
            "class": outcome.class_D,
            "state": outcome.state_DT,
            "truths": outcome.truths_NC,
        }
    arrays = {"part": outcome.part, "whole": outcome.whole}
    return arrays if outcome.group_N is None else {**arrays, "group": outcome.group_N}


def _outcomes(arrays: Mapping[str, NDArray[Any]], number: int) -> Outcomes:
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        row, _, rest = name.partition("/")
        metric, _, part = rest.rpartition("/")
        if row == str(number) and metric:
            found.setdefault(metric, {})[part] = array
    precisions = {
        name: Matches(
            picture_D=own["picture"],
            class_D=own["class"],
            state_DT=own["state"],
            truths_NC=own["truths"],
        )
        for name, own in found.items()
        if "state" in own
    }
    metrics = {
        name: Outcome(part=own["part"], whole=own["whole"], group_N=own.get("group"))
        for name, own in found.items()
        if "part" in own
    }
    keys = tuple(arrays[f"{number}/keys"].tolist())
    return Outcomes(keys=keys, metrics=metrics, precisions=precisions)
