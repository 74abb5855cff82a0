"""Views to learn from and to test on: geometry is shared by picture and label."""

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.evaluate.transfer.pixel_views import (
    ViewSettings,
    cut_depth,
    learning_view,
    recoloured,
    whole_view,
)

MIRROR = (-1.0, 1.0, 1.0)


def marked(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """A picture whose red and green say row and column, and a label that says the same."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    pixels = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    return Image.fromarray(pixels), np.stack([columns, rows, np.ones_like(rows)])


def plain(**settings: object) -> ViewSettings:
    return ViewSettings(colours=0, **settings)  # type: ignore[arg-type]


def test_cuts_are_everywhere_and_label_and_picture_stay_together() -> None:
    image, label = marked(20, 30)
    corners, mirrored = set(), 0
    for seed in range(60):
        draws = np.random.default_rng(seed)
        pixels, cut = learning_view(image, label, plain(cut=(8, 12)), MIRROR, draws)
        assert pixels.shape == cut.shape == (3, 8, 12)
        rows, columns = (pixels[:2] * 255).round()
        torch.testing.assert_close(cut[1], rows)
        turned = bool(columns[0, 0] > columns[0, 1])
        torch.testing.assert_close(cut[0], -columns if turned else columns)
        corners.add((int(rows.min()), int(columns.min())))
        mirrored += turned
    tops, lefts = zip(*corners, strict=True)
    assert (min(tops), max(tops)) == (0, 12)
    assert min(lefts) <= 1
    assert max(lefts) >= 17
    assert 15 < mirrored < 45


def test_a_mirrored_depth_keeps_its_metres() -> None:
    image, label = marked(4, 6)
    depth = label[:1] + 1
    seen = {
        tuple(
            learning_view(image, depth, plain(), (1.0,), np.random.default_rng(s))[1][0, 0].tolist()
        )
        for s in range(10)
    }
    assert seen == {(1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1)}


def test_a_view_is_a_function_of_its_draws() -> None:
    image, label = marked(20, 30)
    settings = ViewSettings(cut=(8, 12), colours=0.5, strip=0.5)
    first, again, other = (
        learning_view(image, label, settings, MIRROR, np.random.default_rng(seed), 30.0)[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_frame_is_cut_at_the_bottom_centre() -> None:
    image, label = marked(20, 31)
    pixels, cut = whole_view(image, label, plain(frame=(8, 12)))
    assert pixels[0, :, 0].tolist() == list(range(12, 20))
    assert pixels[1, 0].tolist() == list(range(9, 21))
    np.testing.assert_array_equal(cut[1, :, 0], np.arange(12, 20))
    np.testing.assert_array_equal(cut[0, 0], np.arange(9, 21))


def test_short_side_resizes_the_picture_and_only_while_learning_the_label() -> None:
    image, label = marked(20, 30)
    pixels, kept = whole_view(image, label, plain(short_side=40))
    assert (pixels.shape[1:], kept.shape[1:]) == ((40, 60), (20, 30))
    pixels, resized = learning_view(
        image, label, plain(short_side=40), (1.0,) * 3, np.random.default_rng(0)
    )
    assert pixels.shape == resized.shape == (3, 40, 60)
    assert set(resized[1, :, 0].tolist()) == set(range(20))  # no value that was not there


def test_colours_change_with_their_probability_alone() -> None:
    pixels = torch.rand(3, 4, 5)
    assert torch.equal(recoloured(pixels, 0, np.random.default_rng(0)), pixels)
    changed = recoloured(pixels, 1, np.random.default_rng(0))
    assert not torch.allclose(changed, pixels, atol=0.01)
    assert 0 <= changed.min() <= changed.max() <= 1


def test_a_strip_shows_the_depths_from_top_to_bottom() -> None:
    pixels, share = torch.zeros(3, 6, 40), torch.linspace(0.1, 1.5, 40).repeat(1, 6, 1)
    widths = []
    for seed in range(20):
        strip = cut_depth(pixels, share, np.random.default_rng(seed))
        columns = (strip[0, 0] > 0).nonzero().flatten()
        assert columns.tolist() == list(range(int(columns[0]), int(columns[-1]) + 1))
        for channel in strip:
            torch.testing.assert_close(channel[:, columns], share[0][:, columns].clamp(0, 1))
        widths.append(len(columns))
    assert max(widths) <= 30
    assert len(set(widths)) > 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cut": (24, 8)}, "a cut of 24 × 8 pixels does not fit into a picture of 20 × 30"),
        ({"frame": (8, 32)}, "a frame of 8 × 32 pixels does not fit into a picture of 20 × 30"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict[str, object], words: str) -> None:
    image, label = marked(20, 30)
    with pytest.raises(CapwrightError, match=words):
        learning_view(image, label, plain(**settings), MIRROR, np.random.default_rng(0))
