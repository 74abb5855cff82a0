"""A seeded sample of a source's pairs, drawn from any number of pictures, with their feature maps.

Reads: the index, a stage's sidecars (one shard at a time), the pictures of the sample, or their
cached feature maps where describe or score left them. Writes nothing.

Algorithm: every picture has a random number that depends on seed, shard and row alone, and the
pictures with the least numbers are the sample, those of them that have a text the pairs. So all
sources are measured on the same pictures, and a sample of half the size is a part of the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capwright.captions import features
from capwright.captions.quality_index import Quality, QualityConfig, quality_index
from capwright.core.config import digest
from capwright.core.progress import Progress
from capwright.corpus.index import load_shard, shard_sizes
from capwright.corpus.pictures import PictureError, decode_rgb
from capwright.corpus.places import ByteReader, places
from capwright.corpus.sidecars import captions_of, has_sidecar

PLACE_COLUMNS = ("key", "phash", "file", "image_offset", "image_size", "image_column")
BATCH = 64


class Pair(NamedTuple):
    """A picture's place in the index and one of its texts."""

    shard: str
    row: int
    key: str
    phash: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A sample of a source and what was counted on the way."""

    pairs: tuple[Pair, ...]
    pictures: int
    """Pictures of the corpus."""
    with_text: int
    """Pictures that have a text of this source."""
    texts: int
    """Texts of this source."""

    @property
    def coverage(self) -> float:
        """Share of pictures with a text."""
        return self.with_text / max(1, self.pictures)


def draw_pairs(
    work: Path,
    folder: Path | None,
    count: int,
    seed: int,
    sources: Sequence[str] | None = None,
) -> Drawn:
    """Draw `count` pictures and take those with a kept text in the sidecars of `folder` (None: alt
    text), one of their texts each, in the order of the index.
    """
    found: list[tuple[float, Pair]] = []
    pictures = with_text = texts = 0
    for shard, size in shard_sizes(work).items():
        pictures += size
        draw_N2 = np.random.default_rng([seed, int(digest(shard), 16)]).random((size, 2))
        captions: list[list[str]] = [[]] * size
        table = load_shard(work, shard, ["key", "shard", "text", "more_texts", "phash"])
        if folder is None or has_sidecar(folder, shard):
            captions = captions_of(table, folder, sources)
        texts += sum(map(len, captions))
        with_text += sum(map(bool, captions))
        best = np.argsort(draw_N2[:, 0], kind="stable")[:count]
        keys, hashes = table["key"].take(best).to_pylist(), table["phash"].take(best).to_pylist()
        for row, key, phash in zip(best.tolist(), keys, hashes, strict=True):
            own = captions[row] or [""]
            text = own[int(draw_N2[row, 1] * len(own))]
            found.append((draw_N2[row, 0], Pair(shard, row, key, phash or 0, text)))
        if len(found) > 4 * count:
            found = sorted(found)[:count]
    pairs = sorted(pair for _, pair in sorted(found)[:count] if pair.text)
    return Drawn(pairs=tuple(pairs), pictures=pictures, with_text=with_text, texts=texts)


class PictureFeatures:
    """Feature maps of single pictures, each computed once however many sources ask for it."""

    def __init__(self, work: Path, picture_size: int) -> None:
        self._work, self._size = work, picture_size
        self._dtype = features.record_type(picture_size)
        self._known: dict[tuple[str, int], Any] = {}

    def of(self, pairs: Sequence[Pair]) -> npt.NDArray[Any]:
        """The records of `pairs`, in order; `valid` is false where a picture is unreadable."""
        missing = sorted({(p.shard, p.row) for p in pairs} - self._known.keys())
        by_shard: dict[str, list[int]] = {}
        for shard, row in missing:
            by_shard.setdefault(shard, []).append(row)
        with Progress("features of the sample", len(missing), "pictures") as progress:
            for shard, rows in by_shard.items():
                for start in range(0, len(rows), BATCH):
                    part = rows[start : start + BATCH]
                    records = self._compute(shard, part)
                    self._known.update(((shard, r), v) for r, v in zip(part, records, strict=True))
                    progress.advance(len(part), failed=int((~records["valid"]).sum()))
        found = np.empty(len(pairs), self._dtype)
        for i, pair in enumerate(pairs):
            found[i] = self._known[pair.shard, pair.row]
        return found

    def _compute(self, shard: str, rows: list[int]) -> npt.NDArray[Any]:
        cached = features.features_folder(self._work) / f"{shard}.npy"
        if cached.exists():
            stored = features.load_shard(self._work, shard)
            if stored.dtype == self._dtype:
                return stored[rows]
        return self._from_pictures(load_shard(self._work, shard, PLACE_COLUMNS).take(rows))

    def _from_pictures(self, table: pa.Table) -> npt.NDArray[Any]:
        import torch

        from capwright.models import trunk

        if not hasattr(self, "_trunk"):
            self._trunk = trunk.load_trunk()
        records = np.zeros(table.num_rows, self._dtype)
        pixels_BHW3 = np.zeros((table.num_rows, self._size, self._size, 3), np.uint8)
        with ByteReader() as reader:
            for i, place in enumerate(places(table)):
                try:
                    pixels_BHW3[i] = decode_rgb(reader.read(*place), size=self._size)
                except (PictureError, OSError):
                    continue
                records["valid"][i] = True
        with torch.inference_mode():
            maps = trunk.feature_maps(self._trunk, trunk.normalise(pixels_BHW3))
        for name, map_B in zip(("middle", "deep"), maps, strict=True):
            records[name] = map_B.numpy() * records["valid"][:, None, None, None]
        return records


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The index of a source, what it was measured on, and what was counted."""

    quality: Quality
    pairs: tuple[Pair, ...]
    """In the order of `quality.pair_bits`."""
    coverage: float
    """Share of the corpus's pictures with a text."""


def source_quality(
    work: Path,
    folder: Path | None,
    config: QualityConfig,
    pictures: PictureFeatures | None = None,
    sources: Sequence[str] | None = None,
) -> Measured:
    """The index of one source: a stage's folder, or None for the alt text."""
    drawn = draw_pairs(work, folder, config.pictures, config.seed, sources)
    records = (pictures or PictureFeatures(work, config.picture_size)).of(drawn.pairs)
    readable = np.flatnonzero(records["valid"])
    pairs = tuple(drawn.pairs[i] for i in readable)
    quality = quality_index(
        records[readable],
        np.array([pair.phash for pair in pairs], np.int64),
        [pair.text for pair in pairs],
        config,
    )
    return Measured(quality=quality, pairs=pairs, coverage=drawn.coverage)
