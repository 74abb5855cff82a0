"""Who judges: the embedded tower on cached features, or any open_clip model on the pictures.

Reads: the index, feature maps or pictures. Writes: WORK/models/clip-tower, when it has to train.

Both give the calibrated score (see `calibration.py`) of texts for the pictures of a shard.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from capwright.captions import features
from capwright.captions.maps import load_maps
from capwright.captions.runner import corpus_digest, shard_table
from capwright.captions.score.calibration import Shuffled, shuffled
from capwright.captions.score.tower import (
    Tower,
    TowerConfig,
    load_tower,
    save_tower,
    train_tower,
)
from capwright.core.config import as_dict
from capwright.core.run_folder import claim
from capwright.corpus.index import shard_names
from capwright.corpus.pictures import ByteReader, PictureError, decode_rgb
from capwright.models import towers

MODEL = "clip-tower"
BATCH = 128
REFERENCE = 128  # pictures that every text is compared with


class Judge(Protocol):
    """Scores texts for pictures."""

    @property
    def name(self) -> str:
        """What the sidecars call it."""
        ...

    def score_shard(self, table: pa.Table, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Scores in 0..1 of each picture's texts; `table` holds whole shards' rows of the index."""
        ...


class TowerJudge:
    """The embedded tower."""

    name = MODEL

    def __init__(self, work: Path, index: pa.Table, tower: Tower) -> None:
        self.work, self.tower = work, tower
        self.reference_RLD = self._encode_reference(index)
        self.seen: dict[str, Shuffled] = {}

    @torch.no_grad()
    def score_shard(self, table: pa.Table, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """See `Judge`; unreadable pictures score 0."""
        records = features.load_shard(self.work, table["shard"][0].as_py())
        scores: list[list[float]] = []
        self.seen.clear()  # sums depend on the batch, and a shard must not depend on another
        for start in range(0, len(records), BATCH):
            some = texts[start : start + BATCH]
            rows = np.arange(start, start + len(some))
            cells_BLD = self.tower.encode_pictures(load_maps(records, rows))
            pairs = [(i, text) for i, row in enumerate(some) for text in row]
            self._learn([text for _, text in pairs])
            picture = torch.tensor([i for i, _ in pairs], dtype=torch.int64)
            similar = self.tower.pair_similarity(cells_BLD[picture], [t for _, t in pairs]).tolist()
            part: list[list[float]] = [[] for _ in some]
            for (i, text), value in zip(pairs, similar, strict=True):
                valid = bool(records["valid"][start + i]) and bool(text)
                part[i].append(self.seen[text].score(value) if valid else 0.0)
            scores += part
        return scores

    def _learn(self, texts: Sequence[str]) -> None:
        """Compare texts with the reference pictures, once each."""
        new = [text for text in dict.fromkeys(texts) if text not in self.seen]
        for start in range(0, len(new), BATCH):
            some = new[start : start + BATCH]
            similarity_RT = self.tower.similarity(self.reference_RLD, some)
            self.seen.update(zip(some, shuffled(similarity_RT), strict=True))

    @torch.no_grad()
    def _encode_reference(self, index: pa.Table) -> Tensor:
        parts = []
        picked = index.take(reference_rows(index.num_rows, self.tower.config.seed))
        for shard in shard_names(picked):
            records = features.load_shard(self.work, shard)
            keys = shard_table(index, shard)["key"].to_pylist()
            number = {key: i for i, key in enumerate(keys)}
            rows = [number[key] for key in shard_table(picked, shard)["key"].to_pylist()]
            parts.append(self.tower.encode_pictures(load_maps(records, np.array(rows))))
        return torch.cat(parts)


def embedded_judge(
    work: Path, index: pa.Table, human: Sequence[str], config: TowerConfig, picture_size: int
) -> TowerJudge:
    """The tower of this work folder, trained first where it is missing."""
    features.run(features.FeaturesConfig(work=work, picture_size=picture_size))
    folder = work / "models" / MODEL
    plan = {"tower": as_dict(config), "picture_size": picture_size}
    claim(folder, {**plan, "corpus": corpus_digest(index)})
    weights = folder / "weights"
    if not weights.exists():
        records = features.load_features(work, index)
        web = index["text"].to_pylist()
        save_tower(weights, train_tower(records, web, human, config, folder / "checkpoints"))
    return TowerJudge(work, index, load_tower(weights))


def reference_rows(count: int, seed: int) -> npt.NDArray[np.int64]:
    """The rows of an index of `count` pictures that all texts are compared with, in order."""
    rng = np.random.default_rng(seed)
    rows: npt.NDArray[np.int64] = np.sort(rng.permutation(count)[:REFERENCE])
    return rows


class OpenClipJudge:
    """Any model that open_clip loads, on the pictures themselves."""

    def __init__(self, model: str, index: pa.Table, seed: int) -> None:
        self.name = model
        self.model, self.preprocess, self.tokenizer = towers.load(model)
        reference_RE, valid_R = self._pictures(index.take(reference_rows(index.num_rows, seed)))
        self.reference_RE = reference_RE[valid_R]

    @torch.no_grad()
    def score_shard(self, table: pa.Table, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """See `Judge`; unreadable pictures score 0."""
        scores: list[list[float]] = []
        for start in range(0, table.num_rows, BATCH):
            some = texts[start : start + BATCH]
            pictures_BE, valid_B = self._pictures(table.slice(start, BATCH))
            pairs = [(i, text) for i, row in enumerate(some) for text in row]
            part: list[list[float]] = [[] for _ in some]
            if pairs:
                texts_TE = self._texts([text for _, text in pairs])
                picture = torch.tensor([i for i, _ in pairs])
                similar = (texts_TE * pictures_BE[picture]).sum(-1).tolist()
                others = shuffled(self.reference_RE @ texts_TE.T)
                for (i, _), value, other in zip(pairs, similar, others, strict=True):
                    part[i].append(other.score(value) if valid_B[i] else 0.0)
            scores += part
        return scores

    @torch.no_grad()
    def _pictures(self, table: pa.Table) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, E] and which pictures could be read [B]."""
        pictures: list[Tensor | None] = []
        columns = (table[c].to_pylist() for c in ("shard_path", "image_offset", "image_size"))
        with ByteReader() as reader:
            for path, offset, size in zip(*columns, strict=True):
                try:
                    pixels = decode_rgb(reader.read(path, offset, size))
                except PictureError:
                    pictures.append(None)
                else:
                    pictures.append(self.preprocess(Image.fromarray(pixels)))
        blank = self.preprocess(Image.new("RGB", (32, 32)))
        valid_B = torch.tensor([picture is not None for picture in pictures])
        images = torch.stack([blank if picture is None else picture for picture in pictures])
        return self.model.encode_image(images, normalize=True), valid_B

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return torch.cat(
            [
                self.model.encode_text(self.tokenizer(list(texts[at : at + BATCH])), normalize=True)
                for at in range(0, len(texts), BATCH)
            ]
        )
