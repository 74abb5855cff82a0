"""The report: one HTML file with everything in it, readable on a laptop and on a phone.

Reads a run folder (run_files.py says what may be in it), writes RUN/report.html or another file.
Run it with `capwright report RUN [--out FILE]`. The page has no script and loads nothing; every
text goes through jinja2's autoescape, because alt text comes from strangers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.report import charts, metrics, pictures
from capwright.report.run_files import Pictures, RunFiles, read_run

BASE_ARM = "alt"
DEPTH_MARGIN = 4.0  # colours tell predictions apart that are off by less than this factor
SOURCE_NAMES = {
    "alt": "alt text",
    "description": "description",
    "describe-small": "description",
    "fused": "fused",
    "fuse-rules": "fused",
    "selected": "selected",
    "select": "selected",
    "shuffled": "shuffled pairs",
    "oracle": "oracle",
}
SPLIT_NAMES = {
    "seen": "New scenes of cut-outs from training",
    "unseen": "Scenes of cut-outs held out of training",
}
PART_NAMES = {
    "config": "the resolved configuration",
    "examples": "caption examples",
    "scores": "score histograms",
    "reasons": "counts of reasons",
    "classes": "names of the classes",
    "pictures": "predictions",
    "curves": "training curves",
}


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which run, where the page goes, how many pictures it shows."""

    run: Path
    out: Path | None = None  # None: report.html in the run folder
    max_examples: int = 12  # caption cards
    max_pictures: int = 6  # pictures of each split with masks and depth

    def __post_init__(self) -> None:
        for name in ("max_examples", "max_pictures"):
            if getattr(self, name) < 1:
                raise CapwrightError(
                    f"{name} is {getattr(self, name)}: a report shows at least 1, "
                    "so give a positive number"
                )


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """Where the page is and what it lacks."""

    page: Path
    bytes: int
    left_out: tuple[str, ...]  # parts of the run that could not be read


def run(config: ReportConfig) -> ReportSummary:
    """Write the report of a run folder."""
    files = read_run(config.run)
    html = render(files, max_examples=config.max_examples, max_pictures=config.max_pictures)
    path = config.out or config.run / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return ReportSummary(
        page=path, bytes=len(html.encode("utf-8")), left_out=tuple(sorted(files.notes))
    )


def render(files: RunFiles, *, max_examples: int = 12, max_pictures: int = 6) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("capwright.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=metrics.headline(files.arms),
        sentences=metrics.summary(files.results),
        total=metrics.duration(files.results.get("seconds")),
        tables=list(arm_tables(files.arms)),
        has_base=BASE_ARM in files.arms,
        arm_charts=list(arm_charts(files.arms)),
        captions=caption_table(files.results.get("captions") or {}),
        reasons=reason_bars(files.reasons),
        histogram=histogram(files.scores),
        has_shuffled="shuffled" in files.scores,
        examples=[example(row, files.data) for row in varied(files.examples, max_examples)],
        example_count=len(files.examples),
        splits=[
            split_grid(split, found, len(files.classes), max_pictures)
            for split, found in files.pictures.items()
        ],
        legend=legend(files),
        curves=list(training_curves(files.curves)),
        settings=flat(files.results.get("settings") or _without_versions(files.config)),
        versions=flat(files.config.get("versions") or {}),
        rows=result_rows(files.results.get("results") or []),
        notes={part: (PART_NAMES[part], why) for part, why in files.notes.items()},
    )


# ---- arms -----------------------------------------------------------------------------------


def arm_tables(arms: Mapping[str, metrics.Arm]) -> Iterator[dict[str, Any]]:
    """The table of arms for each way of probing that was measured."""
    for name, columns in (("frozen", metrics.METRICS), ("fine-tuned", metrics.FINETUNED)):
        found = [m for m in columns if any(metrics.known(arm.get(m.key)) for arm in arms.values())]
        if found:
            yield {"name": name, "columns": found, "rows": list(_arm_rows(arms, found))}


def _arm_rows(
    arms: Mapping[str, metrics.Arm], columns: Sequence[metrics.Metric]
) -> Iterator[dict[str, Any]]:
    base = arms.get(BASE_ARM, {})
    for name, arm in arms.items():
        samples = arm.get("samples_seen")
        yield {
            "arm": name,
            "meaning": metrics.ARM_NAMES.get(name, ""),
            "cells": [_cell(metric, arm, base if name != BASE_ARM else {}) for metric in columns],
            "samples": f"{samples:,}" if metrics.known(samples) else "–",
            "time": metrics.duration(arm.get("seconds")),
        }


def _cell(metric: metrics.Metric, arm: metrics.Arm, base: metrics.Arm) -> dict[str, Any]:
    value = arm.get(metric.key)
    change, direction = metric.change(value, base.get(metric.key))
    interval = metric.interval(arm)
    ends = f"{metric.text(interval[0])} to {metric.text(interval[1])}" if interval else ""
    return {
        "key": metric.key,
        "text": metric.text(value),
        "change": change,
        "direction": direction,
        "interval": ends,
    }


def arm_charts(arms: Mapping[str, metrics.Arm]) -> Iterator[dict[str, Any]]:
    """A chart a metric: a bar an arm with its interval, held-out cut-outs as a thin bar below."""
    unseen = {"miou": metrics.MIOU_UNSEEN, "rmse": metrics.RMSE_UNSEEN}
    base = arms.get(BASE_ARM, {})
    for metric in (metrics.MIOU, metrics.RMSE, metrics.ABSREL, metrics.RETRIEVAL):
        rows = []
        for name, arm in arms.items():
            rows += _bar(metric, name, arm, base)
            if metric.key in unseen:
                rows += _bar(unseen[metric.key], name, arm, {}, faint=True)
        if rows:
            drawn = charts.bars(rows, f"{metric.label} of every arm")
            faint = any(row.faint for row in rows)
            yield {"metric": metric, "svg": drawn, "faint": faint}


def _bar(
    metric: metrics.Metric, name: str, arm: metrics.Arm, base: metrics.Arm, faint: bool = False
) -> list[charts.Bar]:
    value = arm.get(metric.key)
    if not metrics.known(value):
        return []
    change, direction = metric.change(value, base.get(metric.key))
    interval = metric.interval(arm)
    return [
        charts.Bar(
            label="unseen" if faint else name,
            arm=name,
            value=value * metric.scale,
            text=metric.text(value),
            interval=(interval[0] * metric.scale, interval[1] * metric.scale) if interval else None,
            note="" if direction == "same" else change,
            note_class=direction,
            faint=faint,
        )
    ]


# ---- captions -------------------------------------------------------------------------------


def caption_table(captions: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of named objects by stage, as percent."""
    rows = []
    for source, found in captions.items():
        f1 = found.get("f1")
        values = [_percent(found.get(key)) for key in ("precision", "recall", "f1")]
        width = 100 * min(max(f1, 0), 1) if metrics.known(f1) else 0
        rows.append({"source": SOURCE_NAMES.get(source, source), "values": values, "width": width})
    return rows


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f}" if metrics.known(share) else "–"


def reason_bars(reasons: Mapping[str, int], most: int = 14) -> list[dict[str, Any]]:
    """The most frequent reasons; the rest in one row."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    if len(ordered) > most:
        rest = ordered[most - 1 :]
        ordered = [*ordered[: most - 1], (f"{len(rest)} other reasons", sum(n for _, n in rest))]
    total = sum(reasons.values()) or 1
    top = max((n for _, n in ordered), default=1) or 1
    return [
        {"reason": reason, "count": f"{n:,}", "share": f"{n / total:.1%}", "width": 100 * n / top}
        for reason, n in ordered
    ]


def histogram(scores: Mapping[str, Sequence[float]]) -> Markup:
    """Score distributions, one row a source."""
    counts = {name: values for name, values in scores.items() if name != "bins"}
    return charts.histograms(scores["bins"], counts, SOURCE_NAMES) if scores else Markup("")


def varied(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Up to `most` rows, taking turns between reasons so that every kind of decision is seen."""
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_reason.setdefault(str(row.get("reason")), []).append(row)
    turns = zip_longest(*by_reason.values())
    return [row for turn in turns for row in turn if row is not None][:most]


def example(row: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """One card: the picture and every caption that it had."""
    alt = str(row.get("alt") or "")
    selected = _texts(row.get("selected"))
    scores = row.get("scores") if isinstance(row.get("scores"), dict) else {}
    image = data / str(row.get("image") or "")
    return {
        "key": str(row.get("key", "")),
        "image": pictures.file_uri(image, data) if row.get("image") else None,
        "alt": alt,
        "alt_kept": alt in selected,
        "selected": [text for text in selected if text != alt],
        "dropped": not selected,
        "described": _texts(row.get("described")),
        "fused": [text for text in _texts(row.get("fused")) if text not in selected],
        "oracle": str(row.get("oracle") or ""),
        "reason": str(row.get("reason") or ""),
        "scores": [
            (SOURCE_NAMES.get(name, name), f"{value:.2f}")
            for name, value in (scores or {}).items()
            if metrics.known(value)
        ],
    }


def _texts(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    return [str(text) for text in value] if isinstance(value, list) else [str(value)]


# ---- pictures -------------------------------------------------------------------------------


def split_grid(split: str, found: Pictures, classes: int, most: int) -> dict[str, Any]:
    """Masks and depth maps of one split: per picture the truth and every arm."""
    classes = classes or 1 + max(
        int(labels[labels != pictures.IGNORE].max(initial=0))
        for labels in (found.seg_NSS, *found.seg_by_arm.values())
    )
    shown = range(min(most, len(found.images_NSS3)))
    return {
        "split": split,
        "name": SPLIT_NAMES.get(split, split),
        "arms": list(found.seg_by_arm),
        "pictures": [_picture(found, number, classes) for number in shown],
    }


def _picture(found: Pictures, number: int, classes: int) -> dict[str, Any]:
    seg_HW, depth_HW = found.seg_NSS[number], found.depth_NSS[number]
    near, far = pictures.depth_range(depth_HW)
    scale = pictures.depth_range(depth_HW, DEPTH_MARGIN)
    return {
        "photo": pictures.photo_uri(found.images_NSS3[number]),
        "mask": pictures.mask_uri(seg_HW, classes),
        "depth": pictures.depth_uri(depth_HW, *scale),
        "range": f"{near:.1f} to {far:.1f} m",
        "arms": [
            {
                "arm": arm,
                "mask": pictures.mask_uri(labels[number], classes),
                "iou": f"{picture_miou(labels[number], seg_HW):.0%}",
                "depth": pictures.depth_uri(found.depth_by_arm[arm][number], *scale),
                "rmse": f"{picture_rmse(found.depth_by_arm[arm][number], depth_HW):.2f} m",
            }
            for arm, labels in found.seg_by_arm.items()
        ],
    }


def picture_miou(pred_HW: NDArray[np.uint8], true_HW: NDArray[np.uint8]) -> float:
    """Mean IoU over the classes that one picture's truth or prediction has."""
    counted = true_HW != pictures.IGNORE
    pred, true = pred_HW[counted], true_HW[counted]
    present = np.union1d(pred, true)
    ious = [np.sum((pred == c) & (true == c)) / np.sum((pred == c) | (true == c)) for c in present]
    return float(np.mean(ious)) if ious else 0.0


def picture_rmse(pred_HW: NDArray[np.float32], true_HW: NDArray[np.float32]) -> float:
    """Root mean square of one picture's depth errors, metres."""
    valid = np.isfinite(true_HW) & (true_HW > 0)
    errors = pred_HW[valid].astype(np.float64) - true_HW[valid]
    return float(np.sqrt(np.mean(errors**2))) if errors.size else 0.0


def legend(files: RunFiles) -> list[dict[str, str]]:
    """Name and colour of every class, where there are masks."""
    if not files.pictures:
        return []
    palette = pictures.class_palette(len(files.classes))
    return [
        {"name": str(name), "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for name, colour in zip(files.classes, palette, strict=True)
    ]


# ---- how it was made ------------------------------------------------------------------------


def training_curves(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
) -> Iterator[dict[str, Any]]:
    """Loss against samples seen; reconstruction is another loss than contrast, so another chart."""
    contrastive = {arm: rows for arm, rows in curves.items() if arm != "mae"}
    masked = {arm: rows for arm, rows in curves.items() if arm == "mae"}
    for name, group in (("Contrastive loss", contrastive), ("Reconstruction loss", masked)):
        points = {
            arm: [(row["samples_seen"], row["loss"]) for row in rows] for arm, rows in group.items()
        }
        if points:
            title = f"{name} against samples seen"
            yield {"title": title, "svg": charts.curves(points, title)}


def result_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Every row of the results, its metrics in one cell."""
    rows = []
    for result in results:
        numbers = (result.get("metrics") or {}).items()
        protocol = result.get("protocol") or {}
        version = protocol.get("version", "") if isinstance(protocol, dict) else ""
        name = protocol.get("name", "") if isinstance(protocol, dict) else str(protocol)
        options = result.get("options") or {}
        rows.append({
            "dataset": str(result.get("dataset", "")),
            "pretrained": str(result.get("pretrained", "")),
            "task": str(result.get("task", "")),
            "mode": str(options.get("mode", "")),
            "protocol": f"{name}/{version}".strip("/"),
            "seed": str(result.get("seed", "")),
            "metrics": ", ".join(f"{k} {v:.4g}" for k, v in numbers if metrics.known(v)),
        })  # fmt: skip
    return rows


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and texts."""
    lines: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines += flat(item, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", str(item)))
    return lines


def _without_versions(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "versions"}
