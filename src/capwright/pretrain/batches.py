"""Batches by step number: the same whoever makes them, on one process or many, resumed or not.

Reads pictures (decoded once into a memory map, or from the tars as it goes) and captions. A step's
global batch is a slice of an endless sequence of passes over the samples, each in its own order;
a rank takes its share of the slice. What is random comes from `draws`. How many views there are and
what objectives bring beside them depends on which have a weight at the step.

Shapes: B samples of this rank, V views, S stored side, H image side, N patches, L context length,
P pairs, U different captions of the batch.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import PictureError, decode_rgb
from capwright.corpus.places import ByteReader, Place, places
from capwright.pretrain import augmentation
from capwright.pretrain.batch import Batch
from capwright.pretrain.caption_sampler import CaptionSampler
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.draws import Draws, permutation
from capwright.pretrain.objective import Extra, Request, ViewMaker

MEMORISED_TEXTS = 1_000_000  # token rows that are kept instead of tokenised again

Pixels = Callable[[NDArray[np.int64]], NDArray[np.uint8]]  # rows -> uint8 [B, S, S, 3]
Tokenize = Callable[[Sequence[str]], Tensor]  # texts -> int64 [texts, L]
MeanStd = tuple[tuple[float, ...], tuple[float, ...]]


class Batches(Dataset[Batch]):
    """Map from step number to batch."""

    def __init__(
        self,
        config: PretrainConfig,
        *,
        sampler: CaptionSampler,
        pixels: Pixels,
        tokenize: Tokenize,
        mean_std: MeanStd,
        patches: int,
        views: Mapping[str, int] | None = None,
        extras: Mapping[str, Extra] | None = None,
        view_maker: ViewMaker | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`views` and `extras` are what each objective wants, by its name."""
        self.config, self.sampler, self.pixels = config, sampler, pixels
        self.mean_std, self.patches = mean_std, patches
        self.views, self.extras, self.view_maker = views or {}, extras or {}, view_maker
        self.rank, self.world = rank, world
        self.tokens = MemorisedTokens(tokenize)

    def rows(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the index and their epochs for this rank at a step."""
        size = self.config.batch_size
        share = size // self.world
        first = step * size + self.rank * share
        position_B = np.arange(first, first + share)
        epoch_B, place_B = np.divmod(position_B, len(self.sampler.rows))
        row_B = np.empty(share, np.int64)
        for epoch in np.unique(epoch_B):
            order = permutation(self.config.seed, int(epoch), len(self.sampler.rows))
            here = epoch_B == epoch
            row_B[here] = self.sampler.rows[order[place_B[here]]]
        return row_B, epoch_B

    def __getitem__(self, step: int) -> Batch:
        return self.first(step, self.config.batch_size // self.world)

    def first(self, step: int, pictures: int) -> Batch:
        """The batch of this rank's first pictures of a step."""
        row_B, epoch_B = (values[:pictures] for values in self.rows(step))
        draws = Draws(self.config.seed, row_B, epoch_B)
        chosen = self.sampler.choose(row_B, draws, step / self.config.steps)
        tokens_PL = self.tokens(chosen.texts)
        ids_U, first_U, text_P = np.unique(
            token_ids(tokens_PL), return_index=True, return_inverse=True
        )
        active = self.config.active(step)
        views = max([self.views.get(name, 1) for name in active], default=1)
        images_BV3HH, theta_BV23, pixels_BSS3 = self._views(row_B, draws, views)
        request = Request(
            row_B=row_B,
            epoch_B=epoch_B,
            draws=draws,
            pixels_BSS3=pixels_BSS3,
            theta_BV23=theta_BV23,
            texts_P=chosen.texts,
            pair_picture_P=chosen.picture_P,
        )
        extras: dict[str, Tensor] = {}
        for name in sorted(active.keys() & self.extras.keys()):
            extras |= self.extras[name](request)
        return Batch(
            images_BV3HH=augmentation.normalise(images_BV3HH, self.mean_std),
            tokens_UL=torch.from_numpy(tokens_PL[first_U]),
            text_ids_U=torch.from_numpy(ids_U),
            pair_picture_P=torch.from_numpy(chosen.picture_P),
            pair_text_P=torch.from_numpy(text_P.astype(np.int64)),
            pair_set_P=torch.from_numpy(chosen.set_P),
            sample_ids_B=torch.from_numpy(row_B),
            patch_order_BN=torch.from_numpy(draws.uniform("patches", self.patches).argsort(axis=1)),
            extras=extras,
            caption_sets=2 if self.config.sampling.mode == "both" else 1,
            step=step,
        )

    def _views(
        self, row_B: NDArray[np.int64], draws: Draws, views: int
    ) -> tuple[Tensor, Tensor, NDArray[np.uint8] | None]:
        if self.view_maker is not None:
            images_BV3HH = self.view_maker(row_B, draws)
            whole = torch.eye(2, 3).expand(*images_BV3HH.shape[:2], 2, 3)
            return images_BV3HH, whole, None
        pixels_BSS3 = self.pixels(row_B)
        images_B3SS = augmentation.as_floats(pixels_BSS3)
        purposes = ["augmentation", *(f"augmentation {i}" for i in range(1, views))]
        thetas = [augmentation.crops(draws, self.config.augmentation, name) for name in purposes]
        size = self.config.image_size
        images = [augmentation.view(images_B3SS, theta, size) for theta in thetas]
        return torch.stack(images, dim=1), torch.stack(thetas, dim=1), pixels_BSS3


class MemorisedTokens:
    """Tokenises each text once; captions come back every epoch."""

    def __init__(self, tokenize: Tokenize) -> None:
        self._tokenize = tokenize
        self._known: dict[str, NDArray[np.int64]] = {}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids, int64 [texts, L]."""
        if not texts:
            return self._tokenize(["a"]).numpy()[:0]
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        rows = dict(zip(new, self._tokenize(new).numpy(), strict=True)) if new else {}
        if len(self._known) + len(rows) <= MEMORISED_TEXTS:
            self._known |= rows
        return np.stack([rows[t] if t in rows else self._known[t] for t in texts])


def token_ids(tokens_PL: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each row of tokens, equal for equal rows in any batch (a hash modulo 2^64)."""
    factor_L = np.random.Generator(np.random.Philox(key=[0, 0])).integers(
        1, 2**63, size=tokens_PL.shape[1], dtype=np.uint64
    )
    with np.errstate(over="ignore"):
        hashed_PL = (tokens_PL.astype(np.uint64) + np.uint64(1)) * (factor_L | np.uint64(1))
        return np.asarray(hashed_PL.sum(axis=1).astype(np.int64))


def pixels_of(pixels_NSS3: NDArray[np.uint8]) -> Pixels:
    """Pictures that are decoded already."""
    return lambda row_B: pixels_NSS3[row_B]


class PixelsFromTars:
    """Pictures by byte offset, decoded as they are needed, by as many threads as torch has.

    In a worker of a loader that is one. Threads are kept, since each keeps its files open.
    """

    def __init__(self, index: pa.Table, size: int) -> None:
        self._index = index.select(["key", "file", "image_offset", "image_size", "image_column"])
        self._size, self._reader = size, ByteReader()
        self._threads: dict[int, ThreadPoolExecutor] = {}  # by process: a fork inherits none

    def __call__(self, row_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [B, S, S, 3]; CapwrightError for a picture that changed since it was indexed."""
        rows = self._index.take(row_B)
        keys, found = rows["key"].to_pylist(), list(places(rows))
        count = torch.get_num_threads()
        if count == 1:
            return np.stack(list(map(self._decode, keys, found)))
        if os.getpid() not in self._threads:
            self._threads[os.getpid()] = ThreadPoolExecutor(count, "decode")
        return np.stack(list(self._threads[os.getpid()].map(self._decode, keys, found)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": {}}

    def _decode(self, key: str, place: Place) -> NDArray[np.uint8]:
        try:
            return decode_rgb(self._reader.read(*place), size=self._size)
        except PictureError as error:
            raise CapwrightError(
                f"picture {key} in {place.file} cannot be decoded ({error}): "
                "the shard changed after it was indexed, so index it again"
            ) from error
