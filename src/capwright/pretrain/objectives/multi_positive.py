"""All captions of a picture as positives at once, the plain multi-positive form of CLIP's loss.

It is how "Graph-Based Captioning" (Hsieh et al., arXiv 2407.06723) trains on several captions of a
picture; drawing one of them each step instead cost that work 3 to 9 points on ImageNet. The form
here is ours: for picture i with captions T_i, unit vectors x and y, scale s,
    p_it = e^{s x_i y_t} / (e^{s x_i y_t} + sum_{u not in T_i} e^{s x_i y_u})
    q_it = softmax_j(s y_t x_j)_i
    L = -1/2B sum_i 1/|T_i| sum_{t in T_i} (log p_it + log q_it)
so that every picture weighs the same, a positive never competes with another one of the same
picture, and with one caption a picture it is InfoNCE. A picture whose caption is another one's too
is no negative of it. Use `sampling.mode=multi_positive`; a picture without text is left out.

Shapes: B pictures of this rank, G pictures of all ranks, V views, P pairs of this rank, Q pairs of
all ranks, U different captions, E embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.pretrain.batch import Batch
from capwright.pretrain.distributed import ALONE, Group, gather_uneven, sum_over
from capwright.pretrain.objective import BaseObjective, Features, Terms


def multi_positive_loss(
    image_BE: Tensor,
    text_PE: Tensor,
    picture_P: Tensor,
    scale: Tensor,
    *,
    sample_ids_B: Tensor,
    text_ids_P: Tensor,
    group: Group = ALONE,
) -> Tensor:
    """Loss of this rank's unit vectors against those of all ranks, to be averaged over ranks.

    `picture_P` is each caption's row of `image_BE`; equal ids are equal pictures and equal texts.
    """
    pair_image_PE, pair_sample_P = image_BE[picture_P], sample_ids_B[picture_P]
    images_GE, texts_QE = gather_uneven(image_BE, group), gather_uneven(text_PE, group)
    samples_G = gather_uneven(sample_ids_B, group)
    pair_samples_Q = gather_uneven(pair_sample_P, group)
    text_ids_Q = gather_uneven(text_ids_P, group)

    # a caption is true of a picture that has one with the same tokens
    distinct_U, text_Q = text_ids_Q.unique(return_inverse=True)
    own_PQ = (pair_sample_P[:, None] == pair_samples_Q).float()
    has_PU = own_PQ.new_zeros(len(own_PQ), len(distinct_U)).index_add(1, text_Q, own_PQ)
    true_PQ = has_PU[:, text_Q] > 0
    own_P = scale * (pair_image_PE * text_PE).sum(dim=-1)
    by_image_PQ = (scale * pair_image_PE @ texts_QE.T).masked_fill(true_PQ, -torch.inf)
    by_image_P = torch.cat([own_P[:, None], by_image_PQ], dim=1).logsumexp(dim=1) - own_P

    has_text_PQ = text_ids_P[:, None] == text_ids_Q
    true_PG = has_text_PQ.float() @ (pair_samples_Q[:, None] == samples_G).float() > 0
    by_text_PG = (scale * text_PE @ images_GE.T).masked_fill(true_PG, -torch.inf)
    by_text_P = torch.cat([own_P[:, None], by_text_PG], dim=1).logsumexp(dim=1) - own_P

    captions_B = torch.bincount(picture_P, minlength=len(image_BE)).to(own_P.dtype)
    per_pair_P = (by_image_P + by_text_P) / 2 / captions_B[picture_P]
    pictures = sum_over((captions_B > 0).sum().to(own_P.dtype), group)
    return per_pair_P.sum() * group.world / pictures.clamp(min=1)


class Objective(BaseObjective):
    """The mean of the loss over views."""

    uses = ("image", "text", "scale")
    needs = ("image", "text")

    def loss(self, features: Features, batch: Batch, scale: Tensor, group: Group) -> Terms:
        """Loss of one batch."""
        image_BVE = F.normalize(features["image"].float(), dim=-1)
        text_UE = F.normalize(features["text"].float(), dim=-1)
        losses = [
            multi_positive_loss(
                image_BE,
                text_UE[batch.pair_text_P],
                batch.pair_picture_P,
                scale,
                sample_ids_B=batch.sample_ids_B,
                text_ids_P=batch.text_ids_U[batch.pair_text_P],
                group=group,
            )
            for image_BE in image_BVE.unbind(dim=1)
        ]
        captions = len(batch.pair_text_P) / max(1, batch.pictures)
        return Terms(
            torch.stack(losses).mean(),
            {"captions_per_picture": torch.tensor(captions, device=image_BVE.device)},
        )
