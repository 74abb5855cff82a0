"""CLIP's loss: "Learning Transferable Visual Models From Natural Language Supervision" (Radford
et al., arXiv 2103.00020); or SigLIP's: "Sigmoid Loss for Language Image Pre-Training" (Zhai et al.,
arXiv 2303.15343), with `contrastive.form=sigmoid`.

For unit vectors x_i, y_i of a pair, scale s and bias b:
    softmax  L = -1/2P sum_i [ log softmax_j(s x_i y_j)_i + log softmax_j(s y_i x_j)_i ]
    sigmoid  L = -1/P  sum_i sum_j log sigmoid(z_ij (s x_i y_j + b)),  z_ii = 1, else -1
Pairs that are true although they are not on the diagonal are left out of the sums over j: another
sample with the same caption (equal tokens), and the same picture with another of its captions.
With several views of a picture or several caption sets (real and synthetic, DataCompDR's mode
`both`) it is the mean over them; the papers' sum is that times their number.

Shapes: B pictures of this rank, V views, U different captions, P pairs of this rank, G pairs of all
ranks, E embedding.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import ALONE, Group, counts, gather_uneven
from capwright.pretrain.objective import BaseObjective, Features, Terms


def contrastive_loss(
    image_PE: Tensor,
    text_PE: Tensor,
    scale: Tensor,
    same_ids: tuple[Tensor, ...] = (),
    group: Group = ALONE,
) -> Tensor:
    """Softmax loss of this rank's unit vectors against those of all ranks; its mean over ranks is
    the loss of all pairs.

    Each of `same_ids` is int64 [P]; pairs with equal numbers are no negatives of each other.
    """
    images_GE, texts_GE = gather_uneven(image_PE, group), gather_uneven(text_PE, group)
    own_P, alike_PG = _own_and_alike(image_PE, same_ids, group)
    by_image_PG = (scale * image_PE @ texts_GE.T).masked_fill(alike_PG, -torch.inf)
    by_text_PG = (scale * text_PE @ images_GE.T).masked_fill(alike_PG, -torch.inf)
    both = F.cross_entropy(by_image_PG, own_P, reduction="sum")
    both = both + F.cross_entropy(by_text_PG, own_P, reduction="sum")
    return both * group.world / (2 * max(1, len(texts_GE)))


def sigmoid_loss(
    image_PE: Tensor,
    text_PE: Tensor,
    scale: Tensor,
    bias: Tensor,
    same_ids: tuple[Tensor, ...] = (),
    group: Group = ALONE,
) -> Tensor:
    """Sigmoid loss, as `contrastive_loss`; every picture meets every text once over all ranks."""
    texts_GE = gather_uneven(text_PE, group)
    own_P, alike_PG = _own_and_alike(image_PE, same_ids, group)
    logits_PG = scale * image_PE @ texts_GE.T + bias
    true_PG = torch.full_like(logits_PG, -1.0)
    true_PG[torch.arange(len(own_P)), own_P] = 1.0
    losses_PG = -F.logsigmoid(true_PG * logits_PG)
    return losses_PG.masked_fill(alike_PG, 0.0).sum() * group.world / max(1, len(texts_GE))


def _own_and_alike(
    image_PE: Tensor, same_ids: tuple[Tensor, ...], group: Group
) -> tuple[Tensor, Tensor]:
    """Columns of this rank's own pairs, and where a pair off the diagonal is true all the same."""
    sizes = counts(len(image_PE), group, image_PE.device)
    first = sum(sizes[: group.rank])
    own_P = torch.arange(first, first + len(image_PE), device=image_PE.device)
    alike_PG = torch.zeros(len(own_P), sum(sizes), dtype=torch.bool, device=image_PE.device)
    for ids_P in same_ids:
        alike_PG |= ids_P[:, None] == gather_uneven(ids_P, group)
    alike_PG[torch.arange(len(own_P)), own_P] = False
    return own_P, alike_PG


def pairs_in_turn(
    features: Features, batch: Batch
) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
    """(image [P, E], text [P, E], numbers that make pairs alike) of each view and caption set."""
    image_BVE = F.normalize(features["image"].float(), dim=-1)
    text_UE = F.normalize(features["text"].float(), dim=-1)
    for caption_set in range(batch.caption_sets):
        picture_P, text_P = batch.pairs_of(caption_set)
        same_ids = (batch.text_ids_U[text_P], batch.sample_ids_B[picture_P])
        for view in range(image_BVE.shape[1]):
            yield image_BVE[picture_P, view], text_UE[text_P], same_ids


class Objective(BaseObjective):
    """The mean of the loss over views and caption sets."""

    uses = ("image", "text", "scale")
    needs = ("image", "text")

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.sigmoid = config.contrastive.form == "sigmoid"

    def loss(self, features: Features, batch: Batch, scale: Tensor, group: Group) -> Terms:
        """Loss of one batch."""
        losses = []
        for image_PE, text_PE, same_ids in pairs_in_turn(features, batch):
            if self.sigmoid:
                bias = features["logit_bias"]
                losses.append(sigmoid_loss(image_PE, text_PE, scale, bias, same_ids, group))
            else:
                losses.append(contrastive_loss(image_PE, text_PE, scale, same_ids, group))
        return Terms(torch.stack(losses).mean())
