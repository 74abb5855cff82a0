"""Batches by step number: the same whoever makes them, on one process or many, resumed or not.

Reads pictures (decoded once into a memory map, or from the tars as it goes) and captions. A step's
global batch is a slice of an endless sequence of passes over the samples, each in its own order;
a rank takes its share of the slice. What is random comes from `draws`.

Shapes: B samples of this rank, S stored side, H image side, P patches, L context length,
U different captions of the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import PictureError, decode_rgb
from capwright.corpus.places import ByteReader, Place, places
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.config import Augmentation
from capwright.pretrain.draws import Draws, permutation

MEMORISED_TEXTS = 1_000_000  # token rows that are kept instead of tokenised again

Pixels = Callable[[NDArray[np.int64]], NDArray[np.uint8]]  # rows -> uint8 [B, S, S, 3]
Tokenize = Callable[[Sequence[str]], Tensor]  # texts -> int64 [texts, L]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of a step."""

    images_B3HH: Tensor  # float, normalised
    tokens_UL: Tensor  # int64, each different caption once
    text_B: Tensor  # int64, row of tokens_UL
    text_ids_B: Tensor  # int64, equal for captions with equal tokens, on any rank
    sample_ids_B: Tensor  # int64, row of the index
    patch_order_BP: Tensor  # int64, a random order of the patches

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in vars(self).items()})


class Batches(Dataset[Batch]):
    """Map from step number to batch."""

    def __init__(
        self,
        *,
        sampler: CaptionSampler,
        pixels: Pixels,
        tokenize: Tokenize,
        augmentation: Augmentation,
        image_size: int,
        mean_std: tuple[tuple[float, ...], tuple[float, ...]],
        patches: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.sampler, self.pixels, self.augmentation = sampler, pixels, augmentation
        self.image_size, self.patches, self.seed = image_size, patches, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.tokens = MemorisedTokens(tokenize)
        self._mean_std = torch.tensor(mean_std).view(2, 1, 3, 1, 1)

    def rows(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the index and their epochs for this rank at a step."""
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        position_B = np.arange(first, first + share)
        epoch_B, place_B = np.divmod(position_B, len(self.sampler.rows))
        row_B = np.empty(share, np.int64)
        for epoch in np.unique(epoch_B):
            order = permutation(self.seed, int(epoch), len(self.sampler.rows))
            here = epoch_B == epoch
            row_B[here] = self.sampler.rows[order[place_B[here]]]
        return row_B, epoch_B

    def __getitem__(self, step: int) -> Batch:
        row_B, epoch_B = self.rows(step)
        draws = Draws(self.seed, row_B, epoch_B)
        tokens_BL = self.tokens(self.sampler.choose(row_B, draws))
        text_ids_B = token_ids(tokens_BL)
        _, first_U, text_B = np.unique(text_ids_B, return_index=True, return_inverse=True)
        images = augment(self.pixels(row_B), draws, self.augmentation, self.image_size)
        patch_order_BP = draws.uniform("patches", self.patches).argsort(axis=1)
        return Batch(
            images_B3HH=(images - self._mean_std[0]) / self._mean_std[1],
            tokens_UL=torch.from_numpy(tokens_BL[first_U]),
            text_B=torch.from_numpy(text_B),
            text_ids_B=torch.from_numpy(text_ids_B),
            sample_ids_B=torch.from_numpy(row_B),
            patch_order_BP=torch.from_numpy(patch_order_BP),
        )


class MemorisedTokens:
    """Tokenises each text once; captions come back every epoch."""

    def __init__(self, tokenize: Tokenize) -> None:
        self._tokenize = tokenize
        self._known: dict[str, NDArray[np.int64]] = {}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids, int64 [texts, L]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        rows = dict(zip(new, self._tokenize(new).numpy(), strict=True)) if new else {}
        if len(self._known) + len(rows) <= MEMORISED_TEXTS:
            self._known |= rows
        return np.stack([rows[t] if t in rows else self._known[t] for t in texts])


def token_ids(tokens_BL: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each row of tokens, equal for equal rows in any batch (a hash modulo 2^64)."""
    factor_L = np.random.Generator(np.random.Philox(key=[0, 0])).integers(
        1, 2**63, size=tokens_BL.shape[1], dtype=np.uint64
    )
    with np.errstate(over="ignore"):
        hashed_BL = (tokens_BL.astype(np.uint64) + np.uint64(1)) * (factor_L | np.uint64(1))
        return np.asarray(hashed_BL.sum(axis=1).astype(np.int64))


def augment(
    pixels_BSS3: NDArray[np.uint8], draws: Draws, augmentation: Augmentation, image_size: int
) -> Tensor:
    """Random resized crops (and mirroring) of a batch: uint8 -> float [B, 3, H, H] in 0 to 1."""
    images_B3SS = torch.from_numpy(np.ascontiguousarray(pixels_BSS3)).permute(0, 3, 1, 2)
    images_B3SS = images_B3SS.float() / 255
    area, aspect, left, top, mirror = draws.uniform("augmentation", 5).T
    low, high = augmentation.crop_area
    area = low + (high - low) * area
    low, high = np.log(augmentation.crop_aspect)
    aspect = np.exp(low + (high - low) * aspect)
    width = np.minimum(np.sqrt(area * aspect), 1.0)  # sides as shares of the picture's
    height = np.minimum(np.sqrt(area / aspect), 1.0)
    # grid_sample's coordinates run from -1 to 1 over the picture
    centre_x = (1 - width) * (2 * left - 1)
    centre_y = (1 - height) * (2 * top - 1)
    sign = np.where(mirror < 0.5, -1.0, 1.0) if augmentation.flip else np.ones_like(mirror)
    zero = np.zeros_like(width)
    rows = np.stack([width * sign, zero, centre_x, zero, height, centre_y], axis=1)
    theta_B23 = torch.from_numpy(rows.reshape(-1, 2, 3)).float()
    size = [len(pixels_BSS3), 3, image_size, image_size]
    where = F.affine_grid(theta_B23, size, align_corners=False)
    return F.grid_sample(images_B3SS, where, padding_mode="border", align_corners=False)


def pixels_of(pixels_NSS3: NDArray[np.uint8]) -> Pixels:
    """Pictures that are decoded already."""
    return lambda row_B: pixels_NSS3[row_B]


class PixelsFromTars:
    """Pictures by byte offset, decoded as they are needed."""

    def __init__(self, index: pa.Table, size: int) -> None:
        self._index = index.select(["key", "file", "image_offset", "image_size", "image_column"])
        self._size, self._reader = size, ByteReader()

    def __call__(self, row_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [B, S, S, 3]; CapwrightError for a picture that changed since it was indexed."""
        rows = self._index.take(row_B)
        found = zip(rows["key"].to_pylist(), places(rows), strict=True)
        return np.stack([self._decode(key, place) for key, place in found])

    def _decode(self, key: str, place: Place) -> NDArray[np.uint8]:
        try:
            return decode_rgb(self._reader.read(*place), size=self._size)
        except PictureError as error:
            raise CapwrightError(
                f"picture {key} in {place.file} cannot be decoded ({error}): "
                "the shard changed after it was indexed, so index it again"
            ) from error
