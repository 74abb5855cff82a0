"""Masked crops against a plain rewriting in float64: fill in pixel space, bicubic by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from capwright.adapt.zsseg.crops import masked_crop, region_features
from capwright.evaluate.encoder import Encoder


def cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def weights(side: int, out: int) -> np.ndarray:
    """Rows of a bicubic interpolation, edges repeated."""
    matrix = np.zeros((out, side))
    for to in range(out):
        at = (to + 0.5) * side / out - 0.5
        first = math.floor(at)
        for source in range(first - 1, first + 3):
            matrix[to, min(max(source, 0), side - 1)] += cubic(at - source)
    return matrix


def plain_crop(pixels: np.ndarray, mask: np.ndarray, encoder: Encoder) -> np.ndarray:
    """[3, S, S] from pixels 0 to 255 [H, W, 3]: mean pixel outside, cut, resized, normalised."""
    mean, std = (np.array(value) * 255 for value in (encoder.mean, encoder.std))
    filled = np.where(mask[..., None], pixels.astype(np.float64), mean)
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    cut = filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    down, right = (weights(side, encoder.image_size) for side in cut.shape[:2])
    return np.einsum("ah,hwc,bw->cab", down, (cut - mean) / std, right)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def blob(height: int, width: int, *box: int) -> np.ndarray:
    """A mask with ragged edges inside the box (top, bottom, left, right)."""
    mask = np.zeros((height, width), bool)
    top, bottom, left, right = box
    mask[top:bottom, left:right] = (
        np.random.default_rng(1).random((bottom - top, right - left)) > 0.3
    )
    return mask


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((40, 50), (3, 33, 10, 47)),  # larger than the tower's side, and off its grid
        ((37, 53), (0, 37, 0, 53)),  # the whole picture
        ((40, 50), (5, 6, 7, 8)),  # one pixel
        ((3, 5), (0, 3, 0, 5)),  # a picture smaller than a patch
    ],
)
def test_a_crop_is_the_plain_one(
    encoder: Encoder, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    pixels, mask = picture(*size), blob(*size, *box)
    mask[box[0], box[2]] = mask[box[1] - 1, box[3] - 1] = True
    image = encoder.normalised(pixels[None])[0]
    found = masked_crop(image, torch.from_numpy(mask), encoder.image_size)
    assert found is not None
    expected = plain_crop(pixels, mask, encoder)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_a_mask_without_a_pixel_has_no_crop(encoder: Encoder) -> None:
    image = encoder.normalised(picture(8, 8)[None])[0]
    assert masked_crop(image, torch.zeros(8, 8, dtype=torch.bool), 32) is None


def scene(encoder: Encoder) -> tuple[list[Tensor], list[Tensor]]:
    """Three pictures of several sizes; the second has no mask with a pixel, one mask is empty."""
    sizes = ((40, 50), (20, 20), (33, 71))
    images = [encoder.normalised(picture(*s, seed=i)[None])[0] for i, s in enumerate(sizes)]
    masks = [torch.zeros(3, *size, dtype=torch.bool) for size in sizes]
    masks[0][0, 2:30, 4:20], masks[0][1, 5:9, 30:50] = True, True
    masks[2][2, :, 3:70], masks[2][0, 0, 0], masks[2][1, 9:, 9:] = True, True, True
    return images, masks


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_batches_over_pictures_change_nothing(encoder: Encoder, batch: int) -> None:
    images, masks = scene(encoder)
    found = region_features(encoder, images, masks, batch=batch)
    for regions, image, masks_QHW in zip(found, images, masks, strict=True):
        assert regions.filled_Q.tolist() == masks_QHW.flatten(1).any(dim=1).tolist()
        for query, mask_HW in enumerate(masks_QHW):
            crop = masked_crop(image, mask_HW, encoder.image_size)
            if crop is None:
                assert not regions.features_QE[query].any()
                continue
            with torch.no_grad():
                alone = encoder.model.encode_image(crop[None])[0]
            expected = alone / alone.norm()
            torch.testing.assert_close(regions.features_QE[query], expected, atol=1e-5, rtol=0)


def test_empty_masks_never_reach_the_tower(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, masks = scene(encoder)
    seen: list[int] = []
    from capwright.models import towers

    real = towers.encode_image

    def counted(model: object, images: Tensor) -> Tensor:
        seen.append(len(images))
        return real(model, images)

    monkeypatch.setattr(towers, "encode_image", counted)
    region_features(encoder, images, masks)
    assert seen == [5]
    seen.clear()
    empty = region_features(encoder, images, [torch.zeros_like(each) for each in masks])
    assert not seen and not any(regions.filled_Q.any() for regions in empty)


def test_no_proposals_in_a_picture(encoder: Encoder) -> None:
    images, masks = scene(encoder)
    masks[1] = masks[1][:0]
    found = region_features(encoder, images, masks)
    assert len(found[1].filled_Q) == 0 and found[0].filled_Q.sum() == 2
