"""Curves of several encoders: the table, the plot, how many times fewer labels."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from capwright.core.errors import CapwrightError
from capwright.report import learning_curves
from capwright.report.learning_curves import Point, times_fewer

SVG = "{http://www.w3.org/2000/svg}"


def row(fraction: float, value: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "dataset": "scenes-seen",
        "task": "segmentation",
        "metrics": {"miou": value, "iou/apples": 0.5},
        "interval95": {"miou": 0.01, "iou/apples": 0.0},
        "options": {"fraction": fraction, "items": round(500 * fraction)},
        "seeds": [0, 1, 2],
        **changes,
    }


def folder(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps({"summary": rows}))
    return path


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    first = [row(0.1, 0.2), row(1.0, 0.4), row(1.0, 0.9, dataset="scenes-unseen")]
    other = [row(0.1, 0.3), row(1.0, 0.5)]
    return [folder(tmp_path / "alt" / "seg", first), folder(tmp_path / "quality" / "seg", other)]


def point(items: int, mean: float) -> Point:
    return Point(items=items, fraction=items / 100, mean=mean, interval95=None, seeds=1)


def test_the_table_has_means_intervals_and_what_is_saved(two: list[Path]) -> None:
    summary = learning_curves.run(two)
    lines = [re.split(r" {2,}", line) for line in summary.table.splitlines()]
    assert lines == [
        ["miou, scenes-seen"],
        ["fraction", "items", "alt/seg", "quality/seg"],
        ["0.1", "50", "0.2000 ±0.0100", "0.3000 ±0.0100"],
        ["1", "500", "0.4000 ±0.0100", "0.5000 ±0.0100"],
        ["times fewer items than the first", "3.2"],
    ]


def test_times_fewer_by_hand() -> None:
    first = [point(10, 0.1), point(100, 0.4)]
    assert times_fewer(first, [point(10, 0.3), point(100, 0.5)], lower=False) == "3.2"  # 10 ** 0.5
    assert times_fewer(first, [point(10, 0.5), point(100, 0.6)], lower=False) == "at least 10.0"
    assert times_fewer(first, [point(10, 0.1), point(100, 0.3)], lower=False) == "never as good"
    assert times_fewer(first, first, lower=False) == "1.0"
    worse = [point(10, 3.0), point(100, 2.0)]
    assert times_fewer(worse, [point(10, 2.5), point(100, 1.5)], lower=True) == "3.2"


def test_the_plot_stands_alone_in_light_and_dark(two: list[Path], tmp_path: Path) -> None:
    to = tmp_path / "plots" / "curve.svg"
    learning_curves.run(two, to=to)
    text = to.read_text()
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    svg = ElementTree.fromstring(text)
    words = [element.text for element in svg.iter(f"{SVG}text")]
    for word in ("miou, scenes-seen", "alt/seg", "quality/seg", "50", "500", "labelled items"):
        assert word in words
    lines = [e.get("d") for e in svg.iter(f"{SVG}path") if e.get("class") == "curve"]
    assert len(lines) == 2 + 4  # two curves, four intervals
    dots = [(float(e.get("cx", 0)), float(e.get("cy", 0))) for e in svg.iter(f"{SVG}circle")]
    assert dots[0][0] == dots[2][0] < dots[1][0] == dots[3][0]
    assert dots[3][1] < dots[1][1] < dots[2][1] < dots[0][1]  # better is higher


def test_the_axis_is_logarithmic_and_one_point_can_be_drawn(tmp_path: Path) -> None:
    three = folder(tmp_path / "a", [row(0.01, 0.1), row(0.1, 0.2), row(1.0, 0.3)])
    learning_curves.run([three], to=tmp_path / "three.svg")
    svg = ElementTree.fromstring((tmp_path / "three.svg").read_text())
    x = [float(element.get("cx", 0)) for element in svg.iter(f"{SVG}circle")]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    learning_curves.run([folder(tmp_path / "b", [row(1.0, 0.3)])], to=tmp_path / "one.svg")
    assert "NaN" not in (tmp_path / "one.svg").read_text()


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    to = tmp_path / "curve.svg"
    evil = folder(tmp_path / "<script>alert(1)<", [row(1.0, 0.3)])
    learning_curves.run([evil], to=to)
    assert "<script>" not in to.read_text()
    ElementTree.fromstring(to.read_text())


def test_another_metric_and_set_and_a_missing_value(tmp_path: Path, two: list[Path]) -> None:
    assert "0.9000" in learning_curves.run(two[:1], dataset="scenes-unseen").table
    assert "0.5000" in learning_curves.run(two[:1], metric="iou/apples").table
    gap = folder(tmp_path / "gap", [row(0.1, None), row(1.0, 0.3)])
    assert "–" in learning_curves.run([two[0], gap]).table


def test_what_is_not_there_is_said(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="no metric 'rmse': it has miou"):
        learning_curves.run(two, metric="rmse")
    with pytest.raises(CapwrightError, match="no results on 'scenes-unseen': it has scenes-seen"):
        learning_curves.run(two, dataset="scenes-unseen")
    with pytest.raises(CapwrightError, match="does not exist"):
        learning_curves.run([tmp_path])
    with pytest.raises(CapwrightError, match="named twice"):
        learning_curves.run([two[0], two[0]])
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(CapwrightError, match="give the folders that its --out named"):
        learning_curves.run([tmp_path])
