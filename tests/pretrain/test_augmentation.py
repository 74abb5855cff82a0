"""Crops: geometry that labels can follow."""

import numpy as np
import pytest
import torch

from capwright.pretrain.augmentation import as_floats, crops, normalise, view
from capwright.pretrain.draws import Draws
from capwright.pretrain.settings.augmentation import Augmentation


def augment(
    pixels: np.ndarray, draws: Draws, augmentation: Augmentation, size: int
) -> torch.Tensor:
    return view(as_floats(pixels), crops(draws, augmentation), size)


def test_whole_crop_changes_nothing_and_smaller_ones_magnify() -> None:
    rows = np.arange(4)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    whole = Augmentation(crop_area=(1, 1), crop_aspect=(1, 1))
    same = augment(pixels, Draws(0, rows, rows), whole, 16)
    assert torch.allclose(same, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, atol=1e-5)
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, None, :, None] * 16, (4, 16, 16, 3))
    half = Augmentation(crop_area=(0.25, 0.25), crop_aspect=(1, 1))
    crops = augment(ramp, Draws(0, rows, rows), half, 16)
    slopes = (crops[..., 10] - crops[..., 6]) * 255 / 4
    assert torch.allclose(
        slopes, torch.full_like(slopes, 8.0), atol=0.1
    )  # 16 a pixel, twice as large
    assert len({round(float(x), 3) for x in crops[:, 0, 0, 8]}) > 1  # at different places


def test_mirroring_only_when_asked() -> None:
    rows = np.arange(64)
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, None, :, None] * 16, (64, 16, 16, 3))
    for flip, expected in ((False, 0), (True, 32)):
        images = augment(ramp, Draws(0, rows, rows), Augmentation(flip=flip), 16)
        mirrored = int((images[:, 0, 8, 4] > images[:, 0, 8, 12]).sum())
        assert mirrored == pytest.approx(expected, abs=12 if flip else 0)


def test_each_purpose_has_its_own_crops() -> None:
    rows = np.arange(8)
    draws = Draws(0, rows, rows)
    one, other = (crops(draws, Augmentation(), name) for name in ("augmentation", "augmentation 1"))
    assert torch.equal(one, crops(draws, Augmentation()))
    assert not torch.equal(one, other)


def test_normalised_channels() -> None:
    images = torch.ones(2, 5, 3, 4, 4)
    found = normalise(images, ((0.0, 0.5, 1.0), (1.0, 0.5, 2.0)))
    assert found[0, 0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]
