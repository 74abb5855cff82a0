"""Windows: which, how often each pixel is seen, and that one window is the whole picture."""

import pytest
import torch
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.dense.sliding import resize_short_side, slide, starts


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mean_of_window(images: Tensor) -> Tensor:
    """An answer that depends on all of a window."""
    return images + images.mean(dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (512, 512, 341, [0]),
        (683, 512, 341, [0, 171]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (1024, 512, 512, [0, 512]),
    ],
)
def test_where_windows_begin(length: int, window: int, stride: int, expected: list[int]) -> None:
    found = starts(length, window, stride)
    assert found == expected
    covered = {pixel for start in found for pixel in range(start, start + window)}
    assert covered == set(range(length))


def test_overlaps_are_averaged() -> None:
    images = torch.randn(2, 3, 9, 13)
    found = slide(mean_of_window, images, window=6, stride=4)
    total, count = torch.zeros_like(images), torch.zeros(9, 13)
    for y in (0, 3):
        for x in (0, 4, 7):
            part = images[..., y : y + 6, x : x + 6]
            total[..., y : y + 6, x : x + 6] += mean_of_window(part)
            count[y : y + 6, x : x + 6] += 1
    torch.testing.assert_close(found, total / count)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_batch_changes_nothing(batch: int) -> None:
    images = torch.randn(2, 3, 9, 13)
    expected = slide(mean_of_window, images, window=6, stride=4)
    torch.testing.assert_close(
        slide(mean_of_window, images, window=6, stride=4, batch=batch), expected
    )


@pytest.mark.parametrize("window", [0, 13, 20])
def test_one_window_is_the_whole_picture(window: int) -> None:
    images = torch.randn(2, 3, 9, 13)
    whole = mean_of_window(images)
    assert torch.equal(slide(mean_of_window, images, window=window, stride=1), whole)


def test_a_side_shorter_than_the_window_is_seen_whole() -> None:
    images = torch.randn(1, 3, 4, 13)
    found = slide(mean_of_window, images, window=8, stride=5)
    first, last = mean_of_window(images[..., :8]), mean_of_window(images[..., 5:])
    torch.testing.assert_close(found[..., :5], first[..., :5])
    torch.testing.assert_close(found[..., 8:], last[..., 3:])
    torch.testing.assert_close(found[..., 5:8], (first[..., 5:] + last[..., :3]) / 2)


@pytest.mark.parametrize("stride", [0, 7])
def test_windows_that_miss_pixels_are_refused(stride: int) -> None:
    with pytest.raises(CapwrightError, match=f"cannot move by {stride}: allowed are 1 to 6"):
        slide(mean_of_window, torch.randn(1, 3, 9, 13), window=6, stride=stride)


def test_the_shorter_side_is_brought_to_a_size() -> None:
    images = torch.rand(1, 3, 30, 60)
    assert resize_short_side(images, 20).shape[-2:] == (20, 40)
    assert resize_short_side(images, 20, 32).shape[-2:] == (16, 32)
    assert resize_short_side(images, 30) is images
    assert resize_short_side(images.transpose(2, 3), 45).shape[-2:] == (90, 45)
