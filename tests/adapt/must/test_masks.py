"""Which patches are hidden, and what stands in their place."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from capwright.adapt.must.masks import blanked, draw_mask, masked_tokens, square_side
from capwright.core.errors import CapwrightError
from capwright.dense.vit import open_up
from tiny_must import tiny_model

PLAIN_TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 32}
NANO = {
    "timm_model_name": "capwright_vit_nano_s8",
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": 64,
}


@pytest.mark.parametrize(
    ("grid", "side", "ratio"),
    [((14, 14), 2, 0.3), ((7, 7), 2, 0.1), ((5, 3), 2, 0.5), ((4, 4), 3, 0.9), ((1, 1), 2, 0.5)],
)
def test_whole_squares_are_hidden_also_where_they_do_not_divide(
    grid: tuple[int, int], side: int, ratio: float
) -> None:
    rows, columns = math.ceil(grid[0] / side), math.ceil(grid[1] / side)
    for seed in range(20):
        mask = draw_mask(np.random.default_rng(seed), grid, side, ratio)
        assert mask.shape == grid
        squares = [
            mask[r * side : (r + 1) * side, c * side : (c + 1) * side]
            for r in range(rows)
            for c in range(columns)
        ]
        assert all(square.all() or not square.any() for square in squares)
        hidden = sum(bool(square.any()) for square in squares)
        assert hidden == min(math.ceil(ratio * rows * columns - 1e-6), rows * columns - 1)


def test_every_square_is_hidden_equally_often() -> None:
    draws = [draw_mask(np.random.default_rng(s), (4, 4), 2, 0.5) for s in range(400)]
    assert np.abs(np.mean(draws, axis=0) - 0.5).max() < 0.08


def test_a_square_that_is_no_multiple_of_the_patch_is_refused() -> None:
    assert square_side(56, 14) == 4
    with pytest.raises(CapwrightError, match=r"mask_patch is 40 pixels, but .* have 16: .* as 32"):
        square_side(40, 16)


def test_blanked_pixels_are_those_of_hidden_patches() -> None:
    images, mask = torch.ones(1, 3, 8, 12), torch.zeros(1, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = True
    expected = torch.ones(1, 3, 8, 12)
    expected[..., 4:, 8:] = 0
    assert torch.equal(blanked(images, mask), expected)


@pytest.mark.parametrize(
    ("vision", "size"),
    [(None, 16), (None, 24), (PLAIN_TIMM, 32), (PLAIN_TIMM, 48), (NANO, 64), (NANO, 40)],
    ids=["open_clip", "open_clip larger", "timm", "timm larger", "nano", "nano smaller"],
)
def test_the_token_takes_the_place_of_hidden_patches_before_positions(
    vision: dict[str, Any] | None, size: int
) -> None:
    visual = tiny_model(vision).visual.eval()
    vit = open_up(visual)
    torch.manual_seed(1)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        plain, grid = vit.embed(images)
        mask = torch.zeros(2, *grid, dtype=torch.bool)
        mask[0, 0, -1] = mask[1, 1, 0] = True
        hidden = torch.cat([torch.zeros(2, vit.prefix, dtype=torch.bool), mask.flatten(1)], dim=1)
        token = torch.randn(plain.shape[-1])
        with masked_tokens(visual, mask, token):
            found, _ = vit.embed(images)
            elsewhere, _ = vit.embed(torch.randn_like(images))
        again, _ = vit.embed(images)
    assert torch.equal(found[~hidden], plain[~hidden])
    assert torch.equal(found[hidden], elsewhere[hidden])  # nothing of the picture is left there
    assert not torch.allclose(found[hidden], plain[hidden])
    assert torch.equal(again, plain)  # the tower is as it was
    positions = [found[0, vit.prefix + grid[1] - 1], found[1, vit.prefix + grid[1]]]
    assert not torch.allclose(*positions)  # the same token at two positions
