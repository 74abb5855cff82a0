"""Wording, pixels and charts, each against what it must say."""

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from capwright.report import charts, metrics, pictures


@pytest.mark.parametrize(
    ("quality", "sentence"),
    [
        ({"miou": 0.3, "rmse": 1.0}, "bought 10.0 points of mIoU and took 0.500 m off the depth"),
        ({"miou": 0.3, "rmse": 1.6}, "bought 10.0 points of mIoU, but added 0.100 m to the depth"),
        ({"miou": 0.1, "rmse": 1.6}, "cost 10.0 points of mIoU and added 0.100 m to the depth"),
        ({"miou": 0.2001, "rmse": 1.0}, "left segmentation as it was, but took 0.500 m off"),
        ({"miou": 0.3}, "bought 10.0 points of mIoU"),
        ({"miou": None, "rmse": float("nan")}, ": nothing was measured"),
    ],
)
def test_headline_follows_the_numbers(quality: dict[str, Any], sentence: str) -> None:
    found = metrics.headline({"alt": {"miou": 0.2, "rmse": 1.5}, "quality": quality})
    assert found.startswith(f"Better captions{'' if sentence[0] == ':' else ' '}{sentence}")


def test_overlapping_intervals_are_admitted() -> None:
    alt = {"miou": 0.2, "miou_interval": [0.18, 0.22]}
    apart = {"miou": 0.3, "miou_interval": [0.29, 0.31]}
    near = {"miou": 0.21, "miou_interval": [0.19, 0.23]}
    said = "The intervals overlap in mIoU: that difference may be chance."
    assert said not in metrics.summary({"arms": {"alt": alt, "quality": apart}})
    assert said in metrics.summary({"arms": {"alt": alt, "quality": near}})


def test_equal_compute_is_only_claimed_where_it_holds() -> None:
    arms = {"alt": {"miou": 0.2, "samples_seen": 10}, "quality": {"miou": 0.3, "samples_seen": 10}}
    assert "same number of samples" in metrics.summary({"arms": arms})[0]
    arms["quality"]["samples_seen"] = 20
    assert "same number" not in metrics.summary({"arms": arms})[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.4, "4 s"), (250, "4 min 10 s"), (7500, "2 h 05 min"), (None, "–"), (float("inf"), "–")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert metrics.duration(seconds) == text


def image_of(uri: str) -> Image.Image:
    kind, content = uri.split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_masks_have_the_colours_of_the_legend() -> None:
    labels = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    pixels = np.asarray(image_of(pictures.mask_uri(labels, 5)).convert("RGB"))
    palette = pictures.class_palette(5)
    assert [tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()] == [
        *palette, pictures.IGNORED
    ]  # fmt: skip


def test_a_class_keeps_its_colour_and_classes_differ() -> None:
    palette = np.array(pictures.class_palette(24), int)
    assert pictures.class_palette(9) == [tuple(colour) for colour in palette[:9].tolist()]
    distance = np.abs(palette[:, None] - palette[None]).sum(-1) + 1000 * np.eye(24, dtype=int)
    assert distance.min() > 25


def test_near_is_lighter_than_far_and_outliers_stay_in_the_map() -> None:
    depth = np.array([[1.0, 2.0, 4.0, 8.0, 0.0, 100.0, np.nan, np.inf]], np.float32)
    light = np.asarray(image_of(pictures.depth_uri(depth, 1.0, 8.0)).convert("L")).astype(int)[0]
    assert list(light[:4]) == sorted(light[:4], reverse=True) and len(set(light[:4])) == 4
    assert light[4] == light[0]
    assert set(light[5:]) == {light[3]}


def test_depth_range_survives_a_map_without_truth() -> None:
    assert pictures.depth_range(np.zeros((4, 4), np.float32)) == (1.0, 10.0)
    near, far = pictures.depth_range(np.full((4, 4), 2.0, np.float32))
    assert near == 2.0 and far > near


def widths(svg: str) -> list[float]:
    return [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', svg)]


def test_bars_are_as_long_as_their_values() -> None:
    rows = [
        charts.Bar(label="a", arm="alt", value=10, text="10.0", interval=(8, 12)),
        charts.Bar(label="b", arm="quality", value=20, text="20.0", note="+10.0"),
    ]
    svg = charts.bars(rows, "mIoU")
    assert widths(svg)[1] == pytest.approx(2 * widths(svg)[0], abs=0.2)
    ends = re.search(r'd="M([\d.]+) [\d.]+H([\d.]+)', svg)
    assert ends is not None
    low, high = (float(x) - charts.LABEL_WIDTH for x in ends.groups())
    assert high / low == pytest.approx(12 / 8, abs=0.01)
    assert "+10.0" in svg and charts.bars([], "none") == ""


def test_bars_of_zeros_do_not_divide_by_zero() -> None:
    assert widths(charts.bars([charts.Bar(label="a", arm="b", value=0, text="0")], "t")) == [0]


def test_histogram_names_its_rows_and_their_medians() -> None:
    svg = charts.histograms([0, 1, 2], {"alt": [1, 3], "none": [0, 0]}, {"alt": "alt text"})
    assert ">alt text<" in svg and ">none<" in svg and ">1.33<" in svg
    assert charts.median_of([0, 1, 2], [0, 0]) is None


def test_curves_are_thinned_to_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(1000)]
    thin = charts.thinned(points)
    assert len(thin) <= 120
    assert thin[0] == pytest.approx((4.0, 4 / 9))
    svg = charts.curves({"alt": points, "short": points[:1]}, "loss")
    assert ">alt<" in svg and "short" not in svg


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (-0.2, 0.8, 5, [-0.2, 0, 0.2, 0.4, 0.6, 0.8]),
        (3, 3, 4, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, about: int, expected: list[float]) -> None:
    assert charts.ticks(low, high, about) == pytest.approx(expected)
