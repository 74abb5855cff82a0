"""CLIP's loss: "Learning Transferable Visual Models From Natural Language Supervision" (Radford
et al., arXiv 2103.00020); patches are left out as in FLIP (Li et al., arXiv 2212.00794).

For unit vectors x_i, y_i and scale s:
    L = -1/2B sum_i [ log softmax_j(s x_i y_j)_i + log softmax_j(s y_i x_j)_i ]
Pairs that are true although they are not on the diagonal are left out of the sums over j: another
sample with the same caption (equal tokens), and the same picture drawn twice with two captions.

Shapes: B samples of this rank, G samples of all ranks, U different captions, E embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.models.kept_tokens import kept_tokens
from capwright.models.towers import encode_text
from capwright.pretrain.batches import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import ALONE, Group, gather


def contrastive_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    scale: Tensor,
    same_ids: tuple[Tensor, ...] = (),
    group: Group = ALONE,
) -> Tensor:
    """Loss of this rank's unit vectors against those of all ranks, to be averaged over ranks.

    Each of `same_ids` is int64 [B]; samples with equal numbers are no negatives of each other.
    """
    images_GE, texts_GE = gather(image_BE, group), gather(text_BE, group)
    own_B = torch.arange(len(image_BE), device=image_BE.device) + group.rank * len(image_BE)
    by_image_BG = scale * image_BE @ texts_GE.T
    by_text_BG = scale * text_BE @ images_GE.T
    if same_ids:
        alike_BG = torch.stack([ids[:, None] == gather(ids, group) for ids in same_ids]).any(0)
        alike_BG[torch.arange(len(own_B)), own_B] = False
        by_image_BG = by_image_BG.masked_fill(alike_BG, -torch.inf)
        by_text_BG = by_text_BG.masked_fill(alike_BG, -torch.inf)
    return (F.cross_entropy(by_image_BG, own_B) + F.cross_entropy(by_text_BG, own_B)) / 2


class Objective(nn.Module):
    """Encodes a batch (each different caption once) and applies the loss."""

    uses = ("image", "text")

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__()
        self._patch_dropout = config.patch_dropout

    def forward(self, model: Any, batch: Batch, group: Group) -> Tensor:
        """Loss of one batch."""
        keep_BK = None
        if self._patch_dropout:
            patches = batch.patch_order_BP.shape[1]
            kept = max(1, round(patches * (1 - self._patch_dropout)))
            keep_BK = batch.patch_order_BP[:, :kept]
        with kept_tokens(model, keep_BK):
            image_BE = model.encode_image(batch.images_B3HH)
        text_BE = encode_text(model, batch.tokens_UL)[batch.text_B]
        return contrastive_loss(
            F.normalize(image_BE.float(), dim=-1),
            F.normalize(text_BE.float(), dim=-1),
            model.logit_scale.exp(),
            same_ids=(batch.text_ids_B, batch.sample_ids_B),
            group=group,
        )
