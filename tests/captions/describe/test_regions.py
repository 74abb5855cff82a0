"""Crops of a grid, and boxes in the answers of models as they come."""

import json

import numpy as np
import pytest
from PIL import Image

from capwright.captions.describe.protocol import Caption
from capwright.captions.describe.regions import CropConfig, CropDescriber, parse_regions, pixel_box
from capwright.core.errors import CapwrightError


class Sizes:
    """A captioner that says how large a picture is, and fails on the very small."""

    name, revision, batch_size, overlap = "sizes", "1", 5, 1

    def __init__(self) -> None:
        self.calls: list[int] = []

    def describe(self, images: list[Image.Image]) -> list[list[Caption]]:
        self.calls.append(len(images))
        return [[Caption(text=f"{image.width} by {image.height}")] for image in images]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_windows_cover_the_picture_and_overlap() -> None:
    boxes = CropConfig(grids=(2, 3), overlap=0.25).boxes()
    assert len(boxes) == 13
    assert boxes[0] == pytest.approx((0, 0, 4 / 7, 4 / 7))
    assert boxes[3] == pytest.approx((3 / 7, 3 / 7, 1, 1))
    assert boxes[8] == pytest.approx((0.3, 0.3, 0.7, 0.7))
    assert CropConfig(grids=(1,)).boxes() == [(0, 0, 1, 1)]
    assert CropConfig(grids=(2,), overlap=0).boxes()[1] == (0.5, 0, 1, 0.5)


def test_crops_are_described_in_batches_with_their_boxes() -> None:
    inner = Sizes()
    describer = CropDescriber(inner, CropConfig(grids=(2,), overlap=0))
    first, second = describer.describe([noise(100, 60), noise(40, 20)])
    assert inner.calls == [5, 3]
    assert [(c.box, c.text) for c in first] == [
        ((0, 0, 0.5, 0.5), "50 by 30"),
        ((0.5, 0, 1, 0.5), "50 by 30"),
        ((0, 0.5, 0.5, 1), "50 by 30"),
        ((0.5, 0.5, 1, 1), "50 by 30"),
    ]
    assert {c.text for c in second} == {"20 by 10"}
    assert (describer.name, describer.revision, describer.overlap) == ("sizes", "1", 1)


def test_crops_with_nothing_in_them_are_left_out() -> None:
    image = Image.new("RGB", (100, 100), "white")
    image.paste(noise(30, 30), (60, 10))
    blank = Image.new("RGB", (100, 100), "black")
    describer = CropDescriber(Sizes(), CropConfig(grids=(2,), overlap=0))
    seen, nothing = describer.describe([image, blank])
    assert [c.box for c in seen] == [(0.5, 0, 1, 0.5)]
    assert nothing == [Caption(text="", reason="failed: no region with detail")]


def test_the_most_detailed_crops_are_taken_in_order() -> None:
    image = Image.new("RGB", (100, 100), "grey")
    for number, side in enumerate((10, 40, 20, 30)):
        image.paste(noise(side, side), (50 * (number % 2), 50 * (number // 2)))
    crops = CropConfig(grids=(2,), overlap=0, max_regions=2, min_deviation=0)
    (captions,) = CropDescriber(Sizes(), crops).describe([image])
    assert [c.box for c in captions] == [(0.5, 0, 1, 0.5), (0.5, 0.5, 1, 1)]
    assert CropDescriber(Sizes(), crops).batch_size == 2
    assert CropDescriber(Sizes(), CropConfig()).batch_size == 1  # of 10 crops each


def test_a_picture_of_one_pixel_has_crops() -> None:
    crops = CropConfig(min_deviation=0, max_regions=99)
    (captions,) = CropDescriber(Sizes(), crops).describe([noise(1, 1)])
    assert {c.text for c in captions} == {"1 by 1"}


DOG = {"box": [100, 200, 300, 400], "caption": "a dog"}
DOG_BOX = (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps([DOG]),
        json.dumps({"regions": [DOG]}),
        json.dumps({"a": {"b": [[DOG]]}}),
        "```json\n" + json.dumps([DOG], indent=2) + "\n```",
        "Sure! Here are {the} regions: " + json.dumps([DOG]) + " Anything [else]?",
        json.dumps([DOG])[:-1] + ', {"box": [1, 2, 3, 4], "capt',
        '{"regions": [' + json.dumps(DOG) + ', {"box": [1, 2',
        json.dumps([{"bbox_2d": [100, 200, 300, 400], "label": "a  dog "}]),
        json.dumps([{"bbox": ["100", "200", "300", "400"], "description": "a dog"}]),
        json.dumps([{"x1": 100, "y1": 200, "x2": 300, "y2": 400, "text": "a dog"}]),
        json.dumps([{"box": [[100, 200], [300, 400]], "caption": "a dog"}]),
        json.dumps([{"box": [300, 400, 100, 200], "caption": "a dog"}]),
        json.dumps([{"box": [0.1, 0.2, 0.3, 0.4], "caption": "a dog"}]),
        json.dumps([DOG, DOG]),
        json.dumps([DOG, {"box": [1, 2, 1, 5], "caption": "a line"}, {"box": [1, 2, 3, 4]}]),
        json.dumps([DOG, {"box": [1, 2, 3], "caption": "three"}, "prose", 7, None]),
        json.dumps([DOG, {"box": [1, 2, 3, "x"], "caption": "x"}, {"caption": "no box"}]),
        json.dumps([DOG])[:-1] + ', {"box": [NaN, 2, 3, Infinity], "caption": "odd"}]',
    ],
)
def test_answers_are_read_as_they_come(answer: str) -> None:
    assert parse_regions(answer, 10) == [(DOG_BOX, "a dog")]


def test_braces_in_a_caption_and_many_that_open() -> None:
    odd = {"box": [0, 0, 500, 500], "caption": 'a sign "{sale}"'}
    assert parse_regions(json.dumps([odd]), 10) == [((0, 0, 0.5, 0.5), 'a sign "{sale}"')]
    assert parse_regions("{" * 5000, 10) == []
    assert parse_regions('{"a":' * 5000, 10) == []
    assert parse_regions("I cannot help with that.", 10) == []


def test_pixels_are_told_by_a_coordinate_above_1000() -> None:
    answer = json.dumps(
        [
            {"box": [0, 0, 1000, 500], "caption": "the left"},
            {"box": [1000, 0, 2100, 500], "caption": "the right"},
        ]
    )
    assert parse_regions(answer, 10, (2000, 500)) == [
        ((0, 0, 0.5, 1), "the left"),
        ((0.5, 0, 1, 1), "the right"),  # what lies outside is clipped
    ]
    assert parse_regions(answer, 1, (2000, 500)) == [((0, 0, 0.5, 1), "the left")]
    assert parse_regions(answer, 10) == [((0, 0, 1, 0.5), "the left")]  # nothing is left of it
    assert pixel_box([30, 40, 10, -5], (20, 50)) == (0.5, 0, 1, 0.8)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grids": ()}, r"crops.grids is \[\], but must be numbers of windows"),
        ({"grids": (2, 0)}, r"crops.grids is \[2, 0\], .* at least 1: try \[2, 3\]"),
        ({"overlap": 1.0}, "crops.overlap is 1.0, but must be at least 0 and below 1: try 0.25"),
        ({"max_regions": 0}, "crops.max_regions is 0, but must be at least 1: try 10"),
    ],
)
def test_faults_in_the_configuration(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        CropConfig(**changes)  # type: ignore[arg-type]
