"""The embedded score tower: words that look for themselves in the trunk's feature cells.

Reads: cached feature maps, texts. Writes: WORK/models/clip-tower (checkpoints, `tower.safetensors`,
`tower.json` with the words).

Algorithm: contrastive learning with late interaction (FILIP, arXiv 2111.07783). Every cell of a
picture and every word of a text is a unit vector; a word's vector also knows its two neighbours,
so that "sea lion" is no lion. The similarity of a text and a picture is the weighted mean over the
words of each word's best cell; the weights, learned, tell "penguin" from "wallpaper". Trained with
the symmetric cross-entropy of CLIP (arXiv 2103.00020) on the noisy pairs and the people's
captions.

Shapes: B pictures, L cells of the deep map, T texts, W words of a text, D width.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from capwright.captions.lexicon import is_word, split_words
from capwright.captions.maps import Maps, load_maps, pool_cells
from capwright.captions.training import Phase, draw_batch, train_phase
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json
from capwright.models.trunk import DEEP_CHANNELS, MIDDLE_CHANNELS

PAD, UNKNOWN = 0, 1
MIN_PAIRS = 4


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """The tower and its training."""

    width: int = 96
    """Length of the vectors."""
    hidden: int = 192
    """Hidden channels of a cell."""
    max_words: int = 24
    """Words of a text that count."""
    dropout: float = 0.2
    """On cells and hidden channels."""
    steps: int = 300
    """Optimizer steps."""
    batch_size: int = 128
    """Pairs in one step."""
    learning_rate: float = 2e-3
    """The highest learning rate."""
    seed: int = 0
    """Seeds weights and batches."""
    max_pictures: int = 40_000
    """Pictures that are trained on, drawn from a larger corpus; 22 kB of memory each at 128
    pixels."""

    def __post_init__(self) -> None:
        for name in ("max_words", "max_pictures"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.batch_size < 2:
            raise CapwrightError(
                f"batch_size is {self.batch_size}, but a contrast needs at least 2 pairs: try 128"
            )


class Tower(nn.Module):
    """Pictures' cells and texts' words as vectors of one space."""

    def __init__(self, vocabulary: Sequence[str], config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.number = {word: i + 2 for i, word in enumerate(vocabulary)}
        self.drop = nn.Dropout(config.dropout)
        self.middle = nn.Linear(MIDDLE_CHANNELS, config.hidden)
        self.deep = nn.Linear(DEEP_CHANNELS, config.hidden, bias=False)
        self.cell = nn.Linear(config.hidden, config.width)
        self.word = nn.Embedding(len(vocabulary) + 2, config.width, padding_idx=PAD)
        self.neighbours = nn.Conv1d(config.width, config.width, 3, padding=1)
        self.weight = nn.Embedding(len(vocabulary) + 2, 1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        nn.init.zeros_(self.weight.weight)
        nn.init.normal_(self.neighbours.weight, std=0.02)

    def encode_pictures(self, maps: Maps) -> Tensor:
        """Unit vectors of the cells, [B, L, D]."""
        middle_BLC = pool_cells(maps.middle_BLC, maps.deep_BMC.shape[1])
        mixed = self.middle(self.drop(middle_BLC)) + self.deep(self.drop(maps.deep_BMC))
        hidden = nn.functional.gelu(mixed)
        return nn.functional.normalize(self.cell(self.drop(hidden)), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit vectors of the words [T, W, D] and their weights [T, W], which sum to one."""
        rows = [self._numbers(text) for text in texts]
        longest = max(1, *(len(row) for row in rows))
        words_TW = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        there_TW = words_TW != PAD
        vectors = self.word(words_TW)
        around = self.neighbours(vectors.transpose(1, 2)).transpose(1, 2)
        vectors_TWD = nn.functional.normalize(vectors + around * there_TW[..., None], dim=-1)
        gates = self.weight(words_TW)[..., 0].masked_fill(~there_TW, -1e4)
        weights_TW = gates.softmax(-1) * there_TW
        return vectors_TWD, weights_TW

    def similarity(self, cells_BLD: Tensor, texts: Sequence[str]) -> Tensor:
        """Every picture with every text, [B, T], in -1..1."""
        vectors_TWD, weights_TW = self.encode_texts(texts)
        shape = vectors_TWD.shape[:2]
        at_BLX = cells_BLD @ vectors_TWD.flatten(0, 1).T
        best_BTW = at_BLX.amax(1).unflatten(1, shape)
        similarity_BT: Tensor = (best_BTW * weights_TW).sum(-1)
        return similarity_BT

    def pair_similarity(self, cells_BLD: Tensor, texts: Sequence[str]) -> Tensor:
        """Picture i with text i, [B]."""
        vectors_BWD, weights_BW = self.encode_texts(texts)
        best_BW = torch.einsum("bld,bwd->blw", cells_BLD, vectors_BWD).amax(1)
        similarity_B: Tensor = (best_BW * weights_BW).sum(-1)
        return similarity_B

    def _numbers(self, text: str) -> list[int]:
        words = [w.lower() for w in split_words(text) if is_word(w)][: self.config.max_words]
        return [self.number.get(w, UNKNOWN) for w in words]


def train_tower(
    records: npt.NDArray[Any],
    web: Sequence[str],
    human: Sequence[str],
    config: TowerConfig,
    folder: Path,
) -> Tower:
    """Train on the pairs of a corpus; goes on from the checkpoint in `folder`.

    A picture with a caption by a person is paired with it and with its alt text by turns.
    """
    texted = np.array([bool(w or h) for w, h in zip(web, human, strict=True)], np.bool_)
    rows = np.flatnonzero(records["valid"] & texted)
    if len(rows) < MIN_PAIRS:
        raise CapwrightError(
            f"The corpus has {len(rows)} pictures with a text, and the score needs at least "
            f"{MIN_PAIRS}: add alt text, or score with --model and a trained open_clip checkpoint."
        )
    torch.manual_seed(config.seed)
    tower = Tower(vocabulary_of([*web, *human]), config)
    phase = Phase(
        name="score tower",
        steps=config.steps,
        batch_size=min(config.batch_size, len(rows)),
        learning_rate=config.learning_rate,
    )

    def loss_of_step(step: int) -> Tensor:
        batch = draw_batch(config.seed, phase, step, rows)
        texts = [human[r] if human[r] and (step % 2 or not web[r]) else web[r] for r in batch]
        cells_BLD = tower.encode_pictures(load_maps(records, batch))
        return contrastive_loss(tower.similarity(cells_BLD, texts), tower.log_scale.exp())

    train_phase(tower, phase, config.seed, folder, loss_of_step)
    return tower.eval()


def contrastive_loss(similarity_BB: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy; pair i is the match of i."""
    logits = similarity_BB * scale.clamp(max=100)
    target = torch.arange(len(logits))
    both = nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(
        logits.T, target
    )
    return both / 2


def vocabulary_of(texts: Sequence[str], min_count: int = 2) -> list[str]:
    """Lower-case words used at least `min_count` times, sorted."""
    counts = Counter(w.lower() for text in texts for w in split_words(text) if is_word(w))
    return sorted(word for word, count in counts.items() if count >= min_count)


def save_tower(folder: Path, tower: Tower) -> None:
    """Write what `load_tower` needs, the folder at once."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(tower.state_dict(), temporary / "tower.safetensors")
        saved = {
            "words": list(tower.number),
            "config": as_dict(tower.config),
        }
        (temporary / "tower.json").write_text(json.dumps(saved), encoding="utf-8")


def load_tower(folder: Path) -> Tower:
    """The tower in eval mode."""
    saved = read_json(folder / "tower.json")
    tower = Tower(saved["words"], TowerConfig(**saved["config"]))
    tower.load_state_dict(load_file(folder / "tower.safetensors"))
    return tower.eval()
