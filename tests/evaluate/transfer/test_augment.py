"""Views for segmentation: labels stay on their pixels, squares are full, colours change as said."""

import colorsys
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import IGNORE, SegmentationItem
from capwright.evaluate.transfer.augment import (
    LearningView,
    ViewSettings,
    distorted,
    filled,
)
from capwright.evaluate.transfer.windows import Window

FILL = (10, 20, 30)


def item(height: int = 40, width: int = 60) -> SegmentationItem:
    """Blocks of 8 pixels whose red says the class."""
    rows, columns = -(-height // 8), -(-width // 8)
    classes = np.random.default_rng(0).integers(0, 5, (rows, columns), np.uint8)
    seg_HW = np.kron(classes, np.ones((8, 8), np.uint8))[:height, :width]
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 50 * seg_HW
    return SegmentationItem(key="a", image=Image.fromarray(pixels), seg_HW=seg_HW)


def view(**changes: object) -> LearningView:
    settings = ViewSettings(**{"side": 32, "short_side": 40, "colours": False, **changes})  # type: ignore[arg-type]
    return LearningView(settings=settings, fill=FILL)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 2.0), (0.5, 1.5)])
@pytest.mark.parametrize("short_side", [0, 40, 57])
def test_labels_stay_on_their_pixels(scale: tuple[float, float], short_side: int) -> None:
    make = view(scale=scale, short_side=short_side)
    agree = total = 0
    for seed in range(20):
        pixels, seg = make(item(), np.random.default_rng(seed))
        assert pixels.shape == (3, 32, 32)
        assert seg.shape == (32, 32)
        assert pixels.dtype == seg.dtype == torch.uint8
        known = seg != IGNORE
        agree += int((((pixels[0].float() / 50).round() == seg) & known).sum())
        total += int(known.sum())
    # at the borders of blocks colours are mixed
    assert agree / total > (0.999 if scale == (1.0, 1.0) and short_side != 57 else 0.75)


def test_a_window_of_a_resized_picture_is_the_window_of_its_resized_whole() -> None:
    given = item()
    whole = np.asarray(given.image.resize((90, 60), Image.Resampling.BILINEAR))
    window = Window(whole=(60, 90), top=7, left=11, height=32, width=32)
    found = window.pixels(given.image)
    inner = (slice(2, -2), slice(2, -2))  # a cut sees no pixels beyond its edge
    difference = found[inner].astype(int) - whole[7:39, 11:43][inner]
    assert abs(difference).max() <= 1
    rows, columns = (((np.arange(a, a + 32) + 0.5) / 1.5).astype(int) for a in (7, 11))
    for mine, meant in zip(window.nearest((40, 60)), (rows, columns), strict=True):
        assert np.array_equal(mine, meant)


def test_a_part_fills_the_beginning_of_its_square() -> None:
    square = filled(np.full((2, 3, 3), 7, np.uint8), 4, FILL)
    assert (square[:2, :3] == 7).all()
    assert (square[2:] == FILL).all()
    assert (square[:, 3:] == FILL).all()


def test_what_the_picture_does_not_fill_is_the_mean_colour_and_ignored() -> None:
    make = view(scale=(0.5, 0.5), mirror=False)  # 20 × 30 pixels of a square of 32
    pixels, seg = make(item(), np.random.default_rng(0))
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[:20, :30] = False
    assert (seg[outside] == IGNORE).all()
    assert (seg[~outside] != IGNORE).all()
    assert (pixels[:, outside] == torch.tensor(FILL, dtype=torch.uint8)[:, None]).all()


def test_a_view_is_a_function_of_the_draws_and_pickles() -> None:
    make = pickle.loads(pickle.dumps(view(colours=True)))
    first = make(item(), np.random.default_rng(3))
    again = make(item(), np.random.default_rng(3))
    other = make(item(), np.random.default_rng(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_half_of_the_views_are_mirrored() -> None:
    make = view(side=40, scale=(1.0, 1.0))
    plain = view(side=40, scale=(1.0, 1.0), mirror=False)
    turned = 0
    for seed in range(60):
        found = make(item(40, 40), np.random.default_rng(seed))
        kept = plain(item(40, 40), np.random.default_rng(seed))
        mirrored = all(torch.equal(a, b.flip(-1)) for a, b in zip(found, kept, strict=True))
        same = all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))
        assert mirrored or same
        turned += mirrored
    assert 18 < turned < 42


def test_a_view_of_one_class_alone_is_drawn_again() -> None:
    seg_HW = np.zeros((64, 256), np.uint8)
    seg_HW[:, 224:] = 1
    one = SegmentationItem(key="a", image=Image.new("RGB", (256, 64)), seg_HW=seg_HW)
    both = {
        most: sum(
            len(view(short_side=0, scale=(1.0, 1.0), most_of_one=most)(one, draws)[1].unique()) > 1
            for draws in map(np.random.default_rng, range(60))
        )
        for most in (0.75, 1.0)
    }
    assert both[0.75] > 2 * both[1.0] > 0


def test_colours_change_as_said() -> None:
    """Every picture is one of those that the five coins and four draws allow."""
    pixels = np.full((2, 2, 3), (120, 90, 60), np.uint8)
    changed = {"nothing": 0, "something": 0}
    for seed in range(200):
        found = distorted(pixels, np.random.default_rng(seed))
        draws = np.random.default_rng(seed)
        coins = draws.random(5) < 0.5
        shift, turn = draws.uniform(-32, 32), draws.uniform(-0.1, 0.1)
        contrast, saturation = draws.uniform(0.5, 1.5), draws.uniform(0.5, 1.5)
        x = np.array([120.0, 90.0, 60.0])
        if coins[0]:
            x = x + shift
        if coins[1] and coins[4]:
            x = x * contrast
        x = x.clip(0, 255)
        h, s, v = colorsys.rgb_to_hsv(*(x / 255))
        s = min(1, s * saturation) if coins[2] else s
        h = (h + turn) % 1 if coins[3] else h
        x = np.array(colorsys.hsv_to_rgb(h, s, v)) * 255
        if coins[1] and not coins[4]:
            x = x * contrast
        # bytes in between, and hues of 256 steps
        np.testing.assert_allclose(found[0, 0], x.clip(0, 255), atol=5)
        changed["something" if (found != pixels).any() else "nothing"] += 1
    assert changed["nothing"] > 0
    assert changed["something"] > 150


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"side": 0}, "side=0"), ({"scale": (2.0, 1.0)}, "rising"), ({"most_of_one": 0}, "above 0")],
)
def test_views_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        view(**changes)
