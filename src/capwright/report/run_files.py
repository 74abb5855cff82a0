"""What a run folder holds for its report; everything but results.json may be missing.

    RUN/results.json                              arms, captions, recovered, settings, results
    RUN/config.json                               resolved configuration and versions
    RUN/report_data/captions.jsonl, captions/     example pictures with every caption and the reason
    RUN/report_data/scores.json                   {"bins": [edges], SOURCE: [counts], ...}
    RUN/report_data/reasons.json                  {reason: count}
    RUN/report_data/classes.json                  {"classes": [name of class 0, ...]}
    RUN/report_data/predictions_SPLIT_ARM.npz     images, seg_true, seg_pred, depth_true, depth_pred
    RUN/arms/ARM/metrics.jsonl                    one line per log step: samples_seen, loss

A part that is missing or broken is left out, and a note for the reader says so.

Shapes: N pictures, S pixels a side.
"""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from capwright.core.errors import CapwrightError
from capwright.core.files import read_json

SPLITS = ("seen", "unseen")
PREDICTION_KEYS = ("images", "seg_true", "seg_pred", "depth_true", "depth_pred")

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Test pictures of one split with their truth and what each arm predicts."""

    images_NSS3: NDArray[np.uint8]
    seg_NSS: NDArray[np.uint8]
    depth_NSS: NDArray[np.float32]  # metres
    seg_by_arm: Mapping[str, NDArray[np.uint8]]
    depth_by_arm: Mapping[str, NDArray[np.float32]]  # metres


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """A run folder, read. An empty part is one that could not be read; `notes` says why."""

    folder: Path
    results: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[Mapping[str, Any]] = ()
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    classes: Sequence[str] = ()
    pictures: Mapping[str, Pictures] = field(default_factory=dict)  # by split
    curves: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)  # by arm
    notes: Mapping[str, str] = field(default_factory=dict)  # by part

    @property
    def arms(self) -> Mapping[str, Mapping[str, Any]]:
        """The metrics of every arm, in the order of the results."""
        arms: Mapping[str, Mapping[str, Any]] = self.results["arms"]
        return arms

    @property
    def data(self) -> Path:
        """Where the report's own data lies."""
        return self.folder / "report_data"


def read_run(folder: Path) -> RunFiles:
    """Read everything that is there.

    Raises CapwrightError when results.json is missing or has no arms.
    """
    results = _read_results(folder)
    data = folder / "report_data"
    notes: dict[str, str] = {}

    def part(name: str, read: Callable[[], Part], otherwise: Part) -> Part:
        try:
            return read()
        except (OSError, ValueError, KeyError, TypeError, CapwrightError, zipfile.BadZipFile) as e:
            notes[name] = str(e).replace(f"{folder}/", "")
            return otherwise

    return RunFiles(
        folder=folder,
        results=results,
        config=part("config", lambda: _mapping(folder / "config.json"), {}),
        examples=part("examples", lambda: _read_lines(data / "captions.jsonl"), []),
        scores=part("scores", lambda: _read_scores(data / "scores.json"), {}),
        reasons=part("reasons", lambda: _read_reasons(data / "reasons.json"), {}),
        classes=part("classes", lambda: _mapping(data / "classes.json")["classes"], []),
        pictures=part("pictures", lambda: _read_pictures(data, list(results["arms"])), {}),
        curves=part("curves", lambda: _read_curves(folder, list(results["arms"])), {}),
        notes=notes,
    )


def _read_results(folder: Path) -> Mapping[str, Any]:
    path = folder / "results.json"
    results = read_json(path)
    arms = results.get("arms") if isinstance(results, dict) else None
    if (
        not isinstance(arms, dict)
        or not arms
        or not all(isinstance(a, dict) for a in arms.values())
    ):
        raise CapwrightError(
            f"{path} has no arms: a report needs {{'arms': {{'alt': {{'miou': 0.15}}}}}}, "
            "as `capwright demo` writes it"
        )
    return dict(results)


def _mapping(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected an object")
    return found


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    with path.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds no JSON objects")
    return rows


def _read_scores(path: Path) -> dict[str, list[float]]:
    scores = {name: [float(x) for x in values] for name, values in _mapping(path).items()}
    bins = len(scores["bins"]) - 1
    wrong = [name for name, counts in scores.items() if name != "bins" and len(counts) != bins]
    if wrong or bins < 1:
        raise ValueError(f"{path} has {bins} bins and other counts for {', '.join(wrong)}")
    return scores


def _read_reasons(path: Path) -> dict[str, int]:
    return {str(reason): int(count) for reason, count in _mapping(path).items()}


def _read_pictures(data: Path, arms: Sequence[str]) -> dict[str, Pictures]:
    pictures = {}
    for split in SPLITS:
        files = {arm: data / f"predictions_{split}_{arm}.npz" for arm in arms}
        found = {arm: _read_predictions(path) for arm, path in files.items() if path.exists()}
        if found:
            pictures[split] = _joined(found, data, split)
    if not pictures:
        raise ValueError(f"{data}/predictions_SPLIT_ARM.npz do not exist")
    return pictures


def _read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in PREDICTION_KEYS}


def _joined(found: Mapping[str, Mapping[str, NDArray[Any]]], data: Path, split: str) -> Pictures:
    first = next(iter(found.values()))
    for arm, arrays in found.items():
        if not np.array_equal(arrays["images"], first["images"]):
            raise ValueError(
                f"{data}/predictions_{split}_{arm}.npz has other pictures than the rest"
            )
    return Pictures(
        images_NSS3=first["images"],
        seg_NSS=first["seg_true"],
        depth_NSS=first["depth_true"].astype(np.float32),
        seg_by_arm={arm: arrays["seg_pred"] for arm, arrays in found.items()},
        depth_by_arm={
            arm: arrays["depth_pred"].astype(np.float32) for arm, arrays in found.items()
        },
    )


def _read_curves(folder: Path, arms: Sequence[str]) -> dict[str, list[Mapping[str, float]]]:
    paths = {arm: folder / "arms" / arm / "metrics.jsonl" for arm in arms}
    rows = {arm: _read_lines(path) for arm, path in paths.items() if path.exists()}
    curves: dict[str, list[Mapping[str, float]]] = {
        arm: [row for row in lines if {"samples_seen", "loss"} <= row.keys()]
        for arm, lines in rows.items()
    }
    curves = {arm: lines for arm, lines in curves.items() if len(lines) > 1}
    if not curves:
        raise ValueError(f"{folder}/arms/ARM/metrics.jsonl do not exist or have one line")
    return curves
