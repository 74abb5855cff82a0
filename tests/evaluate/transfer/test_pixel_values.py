"""Reading values off a test set: flips, shifted windows, batches of one size."""

import pytest
import torch

from capwright.core.errors import CapwrightError
from capwright.evaluate.transfer.pixel_values import ReadOut, seen


def reds(images: torch.Tensor) -> torch.Tensor:
    return images[:, :1]


@pytest.mark.parametrize("shifts", [0, 3, 7])
@pytest.mark.parametrize("size", [(8, 20), (20, 8), (8, 8)])
def test_what_depends_on_its_own_pixel_alone_is_seen_the_same(
    shifts: int, size: tuple[int, int]
) -> None:
    images = torch.randn(3, 3, *size)
    out = seen(reds, images, (1.0,), ReadOut(shifts=shifts, batch=4))
    torch.testing.assert_close(out, images[:, :1])


def test_a_mirrored_answer_is_turned_back_with_its_sign() -> None:
    """A model that answers (1, 1, 1) whatever it sees has no idea of x, and says so."""
    images = torch.randn(2, 3, 4, 6)
    out = seen(torch.ones_like, images, (-1.0, 1.0, 1.0), ReadOut(flip=True))
    torch.testing.assert_close(out[:, 0], torch.zeros(2, 4, 6))
    torch.testing.assert_close(out[:, 1:], torch.ones(2, 2, 4, 6))
    once = seen(torch.ones_like, images, (-1.0, 1.0, 1.0), ReadOut(flip=False))
    torch.testing.assert_close(once, torch.ones(2, 3, 4, 6))


def test_flip_averages_both_directions() -> None:
    def columns(images: torch.Tensor) -> torch.Tensor:
        return torch.arange(6.0).expand(len(images), 1, 4, 6)

    out = seen(columns, torch.randn(1, 3, 4, 6), (1.0,), ReadOut(flip=True))
    torch.testing.assert_close(out, torch.full((1, 1, 4, 6), 2.5))


def test_windows_are_square_as_many_as_asked_for_and_reach_both_ends() -> None:
    looked: list[torch.Tensor] = []

    def look(images: torch.Tensor) -> torch.Tensor:
        looked.extend(images[:, 0, 0])
        return images[:, :1]

    places = torch.arange(40.0).expand(1, 3, 10, 40)
    seen(look, places, (1.0,), ReadOut(flip=False, shifts=6))
    starts = [int(row[0]) for row in looked]
    assert {len(row) for row in looked} == {10}
    assert starts == [0, 6, 12, 18, 24, 30]


def test_too_few_windows_are_refused() -> None:
    with pytest.raises(CapwrightError, match="1 shifted windows"):
        ReadOut(shifts=1)
    with pytest.raises(CapwrightError, match="2 square windows do not cover a picture of 8 × 20"):
        seen(reds, torch.randn(1, 3, 8, 20), (1.0,), ReadOut(shifts=2))
