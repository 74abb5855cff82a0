"""Who judges: the embedded tower on cached features, or any open_clip model on the pictures.

Reads: the index, feature maps or pictures. Writes: WORK/models/clip-tower, when it has to train.

Both give the calibrated score (`calibration.py`) of texts for the pictures of a shard; the models
of open_clip are in `open_clip_judge.py`. What a text is compared with to calibrate it are a few
reference pictures, drawn from the whole corpus by their numbers alone, so that no index has to be
in memory and every process draws the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from capwright.captions import features
from capwright.captions.human import human_captions
from capwright.captions.lexicon import is_word, split_words
from capwright.captions.maps import load_maps
from capwright.captions.runner import FAILED
from capwright.captions.score.calibration import Shuffled, shuffled
from capwright.captions.score.tower import (
    Tower,
    TowerConfig,
    load_tower,
    save_tower,
    train_tower,
)
from capwright.captions.score.windows import windows
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.run_folder import claim, only_one
from capwright.corpus.index import corpus_digest, load_shard, shard_sizes

MODEL = "clip-tower"
BATCH = 128
REFERENCE = 128  # pictures that every text is compared with
UNREADABLE = "unreadable picture"


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges."""

    work: Path
    """The work folder, which holds the index and the captions."""
    model: str = ""
    """A CLIP or SigLIP of open_clip (checkpoint folder or MODEL/TAG); empty: the embedded tower."""
    human_field: str = "human_caption"
    """Field of a sample's .json that holds a caption by a person."""
    picture_size: int = 128
    """Side in pixels at which the embedded trunk sees pictures; a multiple of 32."""
    seed: int = 0
    """Draws the reference pictures of an open_clip model's calibration."""
    tower: TowerConfig = field(default_factory=TowerConfig)
    device: str = "auto"
    """Where an open_clip model runs: auto, cpu, cuda or cuda:N."""
    decode_threads: int = 4
    """Threads that read and decode pictures for an open_clip model."""

    def __post_init__(self) -> None:
        if self.decode_threads < 1:
            raise CapwrightError(
                f"decode_threads is {self.decode_threads}, but must be at least 1: try 4"
            )


class Judged(NamedTuple):
    """What a judge says about a text and a picture."""

    score: float
    """Calibrated, 0..1."""
    similarity: float | None
    """The cosine itself, None for a picture that cannot be read."""
    windows: int
    """In how many parts the text was read."""
    reason: str = ""
    """Why the picture could not be read, after "failed: "."""


class Judge(ABC):
    """Scores texts for pictures."""

    name: str
    """What the sidecars call it."""
    revision: str = ""
    """What tells two versions of it apart."""
    naming: str = "{}"
    """How it is asked whether a thing is in a picture."""

    @abstractmethod
    def judge_shard(self, table: pa.Table, texts: Sequence[Sequence[str]]) -> list[list[Judged]]:
        """Judge each picture's texts; `table` holds rows of one shard of the index."""

    def score_shard(self, table: pa.Table, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Scores in 0..1 of each picture's texts; 0 where it cannot be read."""
        return [[one.score for one in row] for row in self.judge_shard(table, texts)]


def prepare(config: JudgeConfig) -> None:
    """Train the embedded tower where it is asked for and missing, once for all workers."""
    if not config.model:
        trained_tower(config.work, config.tower, config.picture_size, config.human_field)


def make_judge(config: JudgeConfig) -> Judge:
    """The judge, ready to work; each process makes its own."""
    if config.model:
        from capwright.captions.score.open_clip_judge import OpenClipJudge

        return OpenClipJudge(
            config.model, config.work, config.seed, config.device, config.decode_threads
        )
    return embedded_judge(config.work, config.tower, config.picture_size, config.human_field)


def plan_of(config: JudgeConfig) -> dict[str, Any]:
    """What the scores depend on."""
    plan: dict[str, Any] = as_dict(config)
    for name in ("work", "device", "decode_threads"):
        del plan[name]
    if config.model:
        from capwright.captions.score.open_clip_judge import revision_of

        plan["revision"] = revision_of(config.model)
    return plan


def embedded_judge(
    work: Path, config: TowerConfig, picture_size: int, human_field: str
) -> "TowerJudge":
    """The tower of this work folder, trained first where it is missing."""
    return TowerJudge(work, trained_tower(work, config, picture_size, human_field))


def trained_tower(work: Path, config: TowerConfig, picture_size: int, human_field: str) -> Tower:
    """Load the tower of this work folder; compute features and train it where they are missing."""
    features.run(features.FeaturesConfig(work=work, picture_size=picture_size))
    folder = work / "models" / MODEL
    plan = {"tower": as_dict(config), "picture_size": picture_size, "human_field": human_field}
    claim(folder, {**plan, "corpus": corpus_digest(work)})
    weights = folder / "weights"
    if not weights.exists():
        with only_one(folder):
            records, web, human = _training_pairs(work, config, human_field)
            save_tower(weights, train_tower(records, web, human, config, folder / "checkpoints"))
    return load_tower(weights)


class TowerJudge(Judge):
    """The embedded tower."""

    name = MODEL

    def __init__(self, work: Path, tower: Tower) -> None:
        self.work, self.tower = work, tower
        self.reference_RLD = self._encode_reference()

    @torch.no_grad()
    def judge_shard(self, table: pa.Table, texts: Sequence[Sequence[str]]) -> list[list[Judged]]:
        """See `Judge`."""
        if not table.num_rows:
            return []
        shard = table["shard"][0].as_py()
        records = features.load_shard(self.work, shard)
        rows = _row_numbers(self.work, shard, table, len(records))
        seen: dict[str, Shuffled] = {}  # of this shard, which must not depend on another
        judged: list[list[Judged]] = []
        for start in range(0, len(rows), BATCH):
            some, picked = texts[start : start + BATCH], rows[start : start + BATCH]
            cells_BLD = self.tower.encode_pictures(load_maps(records, picked))
            self._compare(seen, [text for row in some for text in row])
            similar = self._pairs(cells_BLD, some)
            for row, valid, values in zip(
                some, records["valid"][picked].tolist(), similar, strict=True
            ):
                judged.append(
                    [
                        _judged(value, parts, seen[text] if text else None, valid)
                        for text, (value, parts) in zip(row, values, strict=True)
                    ]
                )
        return judged

    def _windows(self, texts: Sequence[str]) -> tuple[list[str], Tensor, Tensor]:
        """The windows of all texts, the text of each [W] and its weight [W]."""
        limit = self.tower.config.max_words
        cut = [windows(text, limit, _count_words) for text in texts]
        parts = [window.text for row in cut for window in row]
        text_W = torch.tensor([i for i, row in enumerate(cut) for _ in row], dtype=torch.int64)
        weight_W = torch.tensor([w.weight for row in cut for w in row], dtype=torch.float32)
        return parts, text_W, weight_W

    def _pairs(
        self, cells_BLD: Tensor, texts: Sequence[Sequence[str]]
    ) -> list[list[tuple[float, int]]]:
        """Similarity of each picture's texts, and how many windows each has."""
        parts, text_W, weight_W = self._windows([text for row in texts for text in row])
        picture_T = torch.tensor([i for i, row in enumerate(texts) for _ in row])
        if not parts:
            return [[] for _ in texts]
        similar_W = self.tower.pair_similarity(cells_BLD[picture_T[text_W]], parts)
        similar_T = torch.zeros(len(picture_T)).index_add_(0, text_W, similar_W * weight_W)
        counts = torch.bincount(text_W, minlength=len(picture_T)).tolist()
        pairs = iter(zip(similar_T.tolist(), counts, strict=True))
        return [[next(pairs) for _ in row] for row in texts]

    def _compare(self, seen: dict[str, Shuffled], texts: Sequence[str]) -> None:
        """Compare texts with the reference pictures, once each."""
        new = [text for text in dict.fromkeys(texts) if text and text not in seen]
        for start in range(0, len(new), BATCH):
            some = new[start : start + BATCH]
            parts, text_W, weight_W = self._windows(some)
            similar_RW = self.tower.similarity(self.reference_RLD, parts) * weight_W
            similar_RT = torch.zeros(len(similar_RW), len(some)).index_add_(1, text_W, similar_RW)
            seen.update(zip(some, shuffled(similar_RT), strict=True))

    @torch.no_grad()
    def _encode_reference(self) -> Tensor:
        parts = []
        for shard, rows in reference_rows(shard_sizes(self.work), self.tower.config.seed).items():
            records = features.load_shard(self.work, shard)
            rows = rows[records["valid"][rows]]
            parts.append(self.tower.encode_pictures(load_maps(records, rows)))
        return enough_references(torch.cat(parts))


def reference_rows(sizes: Mapping[str, int], seed: int) -> dict[str, npt.NDArray[np.int64]]:
    """The rows of each shard that all texts are compared with, drawn from all pictures alike."""
    total = sum(sizes.values())
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(total, min(REFERENCE, total), replace=False, shuffle=False))
    rows: dict[str, npt.NDArray[np.int64]] = {}
    first = 0
    for shard, size in sizes.items():
        inside = drawn[(drawn >= first) & (drawn < first + size)] - first
        if len(inside):
            rows[shard] = inside
        first += size
    return rows


def enough_references(reference: Tensor) -> Tensor:
    """The reference pictures; raises CapwrightError where none spread their similarities."""
    if len(reference) < 2:
        raise CapwrightError(
            f"only {len(reference)} of the pictures that scores are calibrated with can be read, "
            "and 2 are needed: repair the corpus (`capwright doctor`) and index it again"
        )
    return reference


def _judged(similarity: float, parts: int, others: Shuffled | None, valid: bool) -> Judged:
    if not valid:
        return Judged(0.0, None, parts, FAILED + UNREADABLE)
    return Judged(others.score(similarity) if others else 0.0, similarity, parts)


def _count_words(text: str) -> int:
    return sum(is_word(word) for word in split_words(text))


def _row_numbers(work: Path, shard: str, table: pa.Table, size: int) -> npt.NDArray[np.int64]:
    """Where the table's rows are in their shard."""
    if table.num_rows == size:
        return np.arange(size)
    keys = load_shard(work, shard, ["key"])["key"].to_pylist()
    number = {key: i for i, key in enumerate(keys)}
    return np.array([number[key] for key in table["key"].to_pylist()], np.int64)


def _training_pairs(
    work: Path, config: TowerConfig, human_field: str
) -> tuple[npt.NDArray[Any], list[str], list[str]]:
    """Feature records, alt texts and captions by people, of a sample where the corpus is large."""
    sizes = shard_sizes(work)
    share = min(1.0, config.max_pictures / max(1, sum(sizes.values())))
    rng = np.random.default_rng(config.seed)
    parts: list[npt.NDArray[Any]] = []
    web: list[str] = []
    human: list[str] = []
    for shard, size in sizes.items():
        rows = np.sort(rng.permutation(size)[: round(share * size)])
        table = load_shard(work, shard, ["text", "json"]).take(rows)
        parts.append(features.load_shard(work, shard)[rows])
        web += table["text"].to_pylist()
        human += human_captions(table, human_field)
    records = np.empty(len(web), parts[0].dtype)  # np.concatenate would undo the alignment
    start = 0
    for part in parts:
        records[start : start + len(part)] = part
        start += len(part)
    return records, web, human
