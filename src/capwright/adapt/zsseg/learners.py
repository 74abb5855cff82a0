"""What the training loop needs of the two networks: views of items, and a loss of views.

Both learn from the classes that are taught, by their texts; the labels of all others are hidden
before anything else happens to a picture.

Shapes: B pictures, S side of a cut, K taught classes, E joint space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.adapt.zsseg.losses import LossWeights, proposal_loss, targets_of
from capwright.adapt.zsseg.one_stage import PixelClassifier
from capwright.adapt.zsseg.proposals import ProposalNetwork, padded_side
from capwright.adapt.zsseg.splits import taught_labels
from capwright.adapt.zsseg.views import ViewSettings, learning_view
from capwright.datasets.sets import IGNORE, SegmentationItem
from capwright.evaluate.transfer.loop import Schedule

View = tuple[Tensor, Tensor]  # pixels 0 to 1 [3, S, S], labels [S, S] of the taught classes


@dataclass(frozen=True, kw_only=True)
class TaughtView:
    """A random view of an item with the labels of the taught classes; pickles for workers."""

    taught: tuple[int, ...]
    classes: int
    views: ViewSettings

    def __call__(self, item: SegmentationItem, draws: np.random.Generator) -> View:
        seg_HW = taught_labels(item.seg_HW, self.taught, self.classes)
        return learning_view(item.image, seg_HW, self.views, draws)


class ProposalLearner:
    """Stage 2: the proposals of every layer are taught."""

    def __init__(self, network: ProposalNetwork, texts_KE: Tensor, weights: LossWeights) -> None:
        self.module, self.texts_KE, self.weights = network, texts_KE, weights

    def loss(self, items: Sequence[View], draws: np.random.Generator) -> Tensor:
        """The sum of the layers' losses."""
        pixels_B3SS, labels_BSS = _stacked(items, self.texts_KE.device)
        layers = self.module(pixels_B3SS)
        side = padded_side(labels_BSS.shape[-1], self.module.settings.stride)
        missing = (0, side - labels_BSS.shape[-1]) * 2
        size = layers[-1].masks_BQhw.shape[-2:]
        targets = [targets_of(F.pad(each, missing, value=IGNORE), size) for each in labels_BSS]
        total = pixels_B3SS.new_zeros(())
        with torch.autocast(pixels_B3SS.device.type, enabled=False):
            for layer in layers:
                logits_BQN = self.module.logits(layer.embeddings_BQE.float(), self.texts_KE)
                masks_BQhw = layer.masks_BQhw.float()
                total = total + proposal_loss(logits_BQN, masks_BQhw, targets, self.weights)
        return total

    def parameter_groups(self, schedule: Schedule) -> list[dict[str, Any]]:
        """The backbone learns at the schedule's rate for encoders."""
        return self.module.parameter_groups(schedule)


class PixelClassifierLearner:
    """The baseline: cross-entropy at every labelled pixel."""

    def __init__(self, network: PixelClassifier, texts_KE: Tensor) -> None:
        self.module, self.texts_KE = network, texts_KE

    def loss(self, items: Sequence[View], draws: np.random.Generator) -> Tensor:
        """A mean over labelled pixels; 0 without one."""
        pixels_B3SS, labels_BSS = _stacked(items, self.texts_KE.device)
        logits_BKSS: Tensor = self.module(pixels_B3SS, self.texts_KE).float()
        if not bool((labels_BSS != IGNORE).any()):
            return logits_BKSS.sum() * 0.0
        return F.cross_entropy(logits_BKSS, labels_BSS.long(), ignore_index=IGNORE)


def _stacked(items: Sequence[View], device: torch.device) -> tuple[Tensor, Tensor]:
    pixels, labels = zip(*items, strict=True)
    return torch.stack(pixels).to(device), torch.stack(labels).to(device)
