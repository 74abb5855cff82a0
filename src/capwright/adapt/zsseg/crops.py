"""CLIP on masked crops, many crops of many pictures in one pass.

A crop is the box of a mask; what lies outside the mask is filled with the mean pixel; the crop is
brought to the tower's square by bicubic interpolation, whatever its shape:

    x_q = resize(crop(m_q I + (1 - m_q) mean, box(m_q)), S x S)

The mean pixel is 0 once a picture is normalised, so the fill is a product with the mask there. Both
stages use this one function. (The original fills the regions that prompts learn from with the mean
pixel *after* normalisation, a grey that CLIP never sees elsewhere.) A mask without a pixel has no
crop and costs no pass.

Shapes: B crops of one pass, Q masks of a picture, H and W of a picture, S the tower's side, E joint
space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.evaluate.encoder import Encoder
from capwright.models import towers

BATCH = 32  # crops of one pass; on a processor larger ones leave its cache


@dataclass(frozen=True, kw_only=True)
class Regions:
    """What CLIP says of a picture's masks; `features_QE` is 0 where a mask is empty."""

    features_QE: Tensor  # unit vectors
    filled_Q: Tensor  # bool, True where the mask has a pixel


def masked_crop(image_3HW: Tensor, mask_HW: Tensor, side: int) -> Tensor | None:
    """The crop [3, S, S] of a normalised picture; None for a mask without a pixel."""
    rows, columns = (torch.nonzero(mask_HW.any(dim=dim))[:, 0] for dim in (1, 0))
    if not len(rows):
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    window = (slice(top, bottom), slice(left, right))
    filled = image_3HW[:, *window] * mask_HW[window]
    return F.interpolate(filled[None], size=(side, side), mode="bicubic", align_corners=False)[0]


@torch.no_grad()
def region_features(
    encoder: Encoder,
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    batch: int = BATCH,
) -> list[Regions]:
    """The regions of each picture, in order.

    `images` are normalised for the tower, [3, H, W] of any size each; `masks` are bool [Q, H, W].
    """
    side, found, places = encoder.image_size, [], []
    crops: list[Tensor] = []
    features: list[Tensor] = []

    def embed() -> None:
        if crops:
            vectors_BE = towers.encode_image(encoder.model, torch.stack(crops))
            features.append(F.normalize(vectors_BE.float(), dim=-1))
            crops.clear()

    for picture, (image_3HW, masks_QHW) in enumerate(zip(images, masks, strict=True)):
        for query, mask_HW in enumerate(masks_QHW):
            crop = masked_crop(image_3HW, mask_HW, side)
            if crop is None:
                continue
            crops.append(crop)
            places.append((picture, query))
            if len(crops) == batch:
                embed()
    embed()
    vectors = torch.cat(features) if features else None
    for picture, masks_QHW in enumerate(masks):
        mine = [number for number, place in enumerate(places) if place[0] == picture]
        queries = [places[number][1] for number in mine]
        width = 0 if vectors is None else vectors.shape[1]
        features_QE = masks_QHW.new_zeros((len(masks_QHW), width), dtype=torch.float32)
        filled_Q = masks_QHW.new_zeros(len(masks_QHW), dtype=torch.bool)
        if vectors is not None and mine:
            features_QE[queries] = vectors[mine]
            filled_Q[queries] = True
        found.append(Regions(features_QE=features_QE, filled_Q=filled_Q))
    return found
