"""Views with objects: boxes stay those of their masks, and what is lost is left out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import DetectionItem
from capwright.evaluate.transfer.detection_views import (
    DetectionViews,
    LearningView,
    resized,
    size_at_test,
)
from object_sets import rectangles

JITTER = DetectionViews(short_sides=(48,), long_side=64, jitter=(0.3, 2.5), canvas=64)


def seen(item: DetectionItem, settings: DetectionViews, seed: int = 0) -> Any:
    return LearningView(settings=settings, classes=2)(item, np.random.default_rng(seed))


def colour_of(pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return pixels[:, mask.bool()].float().median(dim=1).values


def test_the_usual_size_and_no_more_than_the_longer_side() -> None:
    views = DetectionViews(short_sides=(24, 36), long_side=60)
    for width, height, expected in ((64, 48, (36, 48)), (48, 64, (48, 36)), (100, 20, (12, 60))):
        image = Image.new("RGB", (width, height))
        assert size_at_test(image, views) == expected
        assert resized(image, expected).shape == (3, *expected)
    item = rectangles(0, 48, 64)
    shapes = {tuple(seen(item, views, seed)[0].shape[1:]) for seed in range(20)}
    assert shapes == {(24, 32), (36, 48)}  # one of the shorter sides is drawn


@pytest.mark.parametrize("settings", [JITTER, DetectionViews(short_sides=(30, 70), long_side=99)])
def test_boxes_are_those_of_masks_and_masks_those_of_pixels(settings: DetectionViews) -> None:
    objects = 0
    for number in range(12):
        item = rectangles(number, 48, 64)
        for seed in range(5):
            pixels, target = seen(item, settings, seed)
            assert pixels.dtype == target["masks"].dtype == torch.uint8
            assert pixels.shape[1:] == target["masks"].shape[1:]
            for box, label, mask in zip(*(target[k] for k in ("boxes", "labels", "masks"))):  # noqa: B905
                rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
                tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                torch.testing.assert_close(box, tight.float(), atol=1.0, rtol=0)
                if mask.sum() > 30:
                    red, _, blue = colour_of(pixels, mask)
                    assert (red > blue) == (label == 1), "labels begin at 1"
                objects += 1
    assert objects > 30


def test_mirroring_moves_pixels_boxes_and_masks_alike() -> None:
    item = rectangles(1, 48, 64)
    views = DetectionViews(short_sides=(48,), long_side=64)
    still = seen(item, replace(views, mirror=False))
    both = {False: 0, True: 0}
    for seed in range(12):
        pixels, target = seen(item, views, seed)
        mirrored = not torch.equal(pixels, still[0])
        both[mirrored] += 1
        expected = still[1]["boxes"]
        if mirrored:
            torch.testing.assert_close(pixels, still[0].flip(-1))
            torch.testing.assert_close(target["masks"], still[1]["masks"].flip(-1))
            x0, y0, x1, y1 = expected.T
            expected = torch.stack([64 - x1, y0, 64 - x0, y1], dim=1)
        torch.testing.assert_close(target["boxes"], expected)
    assert min(both.values()) >= 2
    np.testing.assert_array_equal(still[1]["boxes"].numpy(), item.boxes_N4)
    np.testing.assert_array_equal(still[0].permute(1, 2, 0).numpy(), np.asarray(item.image))


def test_jitter_cuts_at_most_the_canvas_and_leaves_out_what_it_loses() -> None:
    views = replace(JITTER, jitter=(3.0, 3.0))
    item = rectangles(1, 48, 64)
    counts = set()
    for seed in range(20):
        pixels, target = seen(item, views, seed)
        assert pixels.shape == (3, 64, 64)
        height, width = pixels.shape[1:]
        x0, y0, x1, y1 = target["boxes"].T
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
        assert (x1 > x0).all() and (y1 > y0).all()
        assert target["masks"].flatten(1).any(dim=1).all()
        counts.add(len(target["labels"]))
    assert {0, 1} <= counts
    small, _ = seen(item, replace(JITTER, jitter=(0.5, 0.5)))
    assert small.shape == (3, 24, 32)  # the longer side is half of the canvas


def test_crowds_are_not_learned_and_an_empty_picture_is_empty() -> None:
    item = rectangles(3, 48, 64)
    assert item.crowd_N.sum() == 1 and len(item.crowd_N) == 3
    _, target = seen(item, JITTER)
    assert len(target["boxes"]) <= 2
    _, target = seen(rectangles(4, 48, 64), JITTER)
    assert target["boxes"].shape == (0, 4) and target["masks"].shape[0] == 0


def test_a_view_is_a_function_of_its_draws() -> None:
    item = rectangles(1, 48, 64)
    first, again, other = (seen(item, JITTER, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1]["boxes"], again[1]["boxes"])
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


def test_a_grey_picture_is_seen_in_colours() -> None:
    item = rectangles(1, 48, 64)
    grey = replace(item, image=item.image.convert("L"))
    assert seen(grey, JITTER)[0].shape[0] == 3


def test_a_label_that_is_no_class_is_refused() -> None:
    item = rectangles(1, 48, 64)
    wrong = replace(item, labels_N=np.array([0, 2]))
    with pytest.raises(CapwrightError, match="picture '001' has an object of the class 2, but"):
        seen(wrong, JITTER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_sides": ()}, "at least one shorter side"),
        ({"long_side": 20, "short_sides": (24,)}, "long_side=20 is below the shorter side 24"),
        ({"jitter": (2.0, 0.1)}, "the lower one first"),
        ({"jitter": (0.0, 1.0)}, "two factors above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        DetectionViews(**changes)
