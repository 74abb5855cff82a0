"""Which names of the lexicon a picture shows, and where: learned from noisy alt text.

Reads: feature cells and texts from its caller. Writes nothing.

Algorithm: multiple-instance learning. A small network gives every cell a logit per name; a
picture's logit is the largest over its cells. A text that mentions a name is a label for one cell
somewhere: softmax cross-entropy over the lexicon. Since a good part of the alt text belongs to
other pictures, from `trust_after` of the steps on a label counts by how likely the network itself
finds it beside the name it likes best, w = min(1, p(label) / (trust_half * max p)), as in
bootstrapping (Reed et al., arXiv 1412.6596). People's captions name all that is there, so each of
their names is a label.

At use a name's probability is the largest over the cells of the softmax *within a cell*: two things
in one picture then do not compete with each other.

Shapes: N pictures, B of a batch, L cells of the middle map, M of the deep one, C channels, W width,
V names, K best names.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from capwright.captions.lexicon import Lexicon
from capwright.captions.maps import Maps, load_maps, repeat_cells
from capwright.captions.training import Phase, draw_batch, train_phase
from capwright.models.trunk import DEEP_CHANNELS, MIDDLE_CHANNELS

PLACE = ("x", "y", "width", "height", "mass", "peak x")  # -1..1 from left to right, top to bottom


@dataclass(frozen=True, kw_only=True)
class ConceptConfig:
    """The concept head and its training."""

    width: int = 256
    """Hidden channels."""
    dropout: float = 0.2
    """On cells and hidden channels."""
    steps: int = 450
    """Optimizer steps."""
    batch_size: int = 128
    """Pictures in one step."""
    learning_rate: float = 2e-3
    """The highest learning rate."""
    trust_after: float = 0.25
    """Share of the steps after which a label counts by how likely it is."""
    trust_half: float = 0.5
    """A label counts in full from this share of the best name's probability."""
    human_weight: float = 2.0
    """Weight of a picture with a person's caption beside one with alt text."""


@dataclass(frozen=True)
class BestConcepts:
    """The K likeliest names of each picture, likeliest first, and where they are seen."""

    names: npt.NDArray[np.int64]  # [N, K] numbers in the lexicon
    probabilities: npt.NDArray[np.float32]  # [N, K]
    places: npt.NDArray[np.float32]  # [N, K, 6], see `PLACE`

    def rows(self, index: npt.NDArray[np.int64]) -> "BestConcepts":
        """The same for some pictures."""
        return BestConcepts(self.names[index], self.probabilities[index], self.places[index])


class ConceptHead(nn.Module):
    """Cells of both maps → logits [B, L, V]; the deep map's part is computed at its own size."""

    def __init__(self, names: int, config: ConceptConfig) -> None:
        super().__init__()
        self.drop = nn.Dropout(config.dropout)
        self.middle = nn.Linear(MIDDLE_CHANNELS, config.width)
        self.deep = nn.Linear(DEEP_CHANNELS, config.width, bias=False)
        self.names = nn.Linear(config.width, names)

    def forward(self, maps: Maps) -> Tensor:
        middle_BLW = self.middle(self.drop(maps.middle_BLC))
        deep_BMW = self.deep(self.drop(maps.deep_BMC))
        hidden_BLW = nn.functional.gelu(middle_BLW + repeat_cells(deep_BMW, middle_BLW.shape[1]))
        logits: Tensor = self.names(self.drop(hidden_BLW))
        return logits


def label_matrix(texts: Sequence[str], lexicon: Lexicon) -> npt.NDArray[np.bool_]:
    """[N, V]: which names each text mentions."""
    number = {name: i for i, name in enumerate(lexicon.names)}
    labels = np.zeros((len(texts), len(lexicon)), np.bool_)
    for row, text in enumerate(texts):
        labels[row, [number[name] for name in lexicon.names_in(text)]] = True
    return labels


def train_concepts(
    head: ConceptHead,
    records: npt.NDArray[Any],
    labels_NV: npt.NDArray[np.bool_],
    human_N: npt.NDArray[np.bool_],
    config: ConceptConfig,
    seed: int,
    folder: Path,
) -> None:
    """Train `head` on the pictures with a label; `human_N` marks labels by people."""
    rows = np.flatnonzero(labels_NV.any(1) & records["valid"])
    phase = Phase(
        name="concepts",
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
    )

    def loss_of_step(step: int) -> Tensor:
        batch = draw_batch(seed, phase, step, rows)
        labels_BV = torch.from_numpy(labels_NV[batch])
        human_B = torch.from_numpy(human_N[batch])
        logits_BV = head(load_maps(records, batch)).amax(1)
        trusting = step < config.trust_after * config.steps
        return concept_loss(logits_BV, labels_BV, human_B, config, trusting)

    train_phase(head, phase, seed, folder, loss_of_step)


def concept_loss(
    logits_BV: Tensor, labels_BV: Tensor, human_B: Tensor, config: ConceptConfig, trusting: bool
) -> Tensor:
    """Mean over labels of -w log p(label); see the module's docstring for w."""
    log_p_BV = logits_BV.log_softmax(-1)
    best_B1 = log_p_BV.detach().amax(-1, keepdim=True)
    weights_BV = ((log_p_BV.detach() - best_B1).exp() / config.trust_half).clamp(max=1)
    certain_B1 = human_B[:, None] | torch.tensor(trusting)
    weights_BV = torch.where(certain_B1, torch.ones_like(weights_BV), weights_BV)
    share_BV = labels_BV / labels_BV.sum(-1, keepdim=True).clamp(min=1)
    importance_B1 = 1 + (config.human_weight - 1) * human_B[:, None]
    return -(importance_B1 * weights_BV * share_BV * log_p_BV).sum() / len(logits_BV)


@torch.no_grad()
def best_concepts(
    head: ConceptHead, records: npt.NDArray[Any], count: int, batch_size: int = 256
) -> BestConcepts:
    """The `count` likeliest names of each record (fewer where the lexicon is smaller)."""
    head.eval()
    parts = []
    for start in range(0, len(records), batch_size):
        chunk = np.arange(start, min(start + batch_size, len(records)))
        within_BLV = head(load_maps(records, chunk)).softmax(-1)
        largest_BV = within_BLV.amax(1)
        top_BK, name_BK = largest_BV.topk(min(count, largest_BV.shape[1]), dim=1)
        seen_BKL = within_BLV.transpose(1, 2).gather(
            1, name_BK[:, :, None].expand(-1, -1, within_BLV.shape[1])
        )
        parts.append((name_BK.numpy(), top_BK.numpy(), _places(seen_BKL).numpy()))
    names, probabilities, places = (np.concatenate(column) for column in zip(*parts, strict=True))
    return BestConcepts(names, probabilities, places)


def _places(seen_BKL: Tensor) -> Tensor:
    """[B, K, 6]: the columns of `PLACE` for probability maps over L = side * side cells."""
    side = math.isqrt(seen_BKL.shape[-1])
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    y_L, x_L = (grid.flatten() for grid in torch.meshgrid(at, at, indexing="ij"))
    mass_BK1 = seen_BKL.sum(-1, keepdim=True).clamp(min=1e-6)
    share_BKL = seen_BKL / mass_BK1
    x, y = ((share_BKL * axis).sum(-1, keepdim=True) for axis in (x_L, y_L))
    wide = ((share_BKL * (x_L - x).square()).sum(-1, keepdim=True)).sqrt()
    high = ((share_BKL * (y_L - y).square()).sum(-1, keepdim=True)).sqrt()
    peak_x = x_L[seen_BKL.argmax(-1)][..., None]
    return torch.cat([x, y, wide, high, mass_BK1 / side, peak_x], -1)
