"""Weighted k-nearest-neighbour classification of vectors of a frozen encoder, as DINO has it.

"Emerging Properties in Self-Supervised Vision Transformers" (Caron et al., arXiv 2104.14294), after
Wu et al. (arXiv 1805.01978): with unit vectors the k training pictures with the largest cosine to
the query vote for their class, each with the weight exp(cosine / temperature).

Reads and writes nothing. Shapes: N training pictures, Q queries, D features, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # queries compared with all training pictures at a time
NEIGHBOURS, TEMPERATURE = 20, 0.07


def votes(
    train_ND: Tensor,
    labels_N: Tensor,
    queries_QD: Tensor,
    classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """The sum of the neighbours' weights for every class [Q, K]; 0 for one without a vote.

    Weights are relative to the nearest neighbour's, which changes no order and cannot overflow.
    """
    train_ND, count = F.normalize(train_ND, dim=1), min(neighbours, len(train_ND))
    found = []
    for part_QD in F.normalize(queries_QD, dim=1).split(CHUNK):
        near_Qn, who_Qn = (part_QD @ train_ND.T).topk(count, dim=1)
        weights_Qn = ((near_Qn - near_Qn[:, :1]) / temperature).exp()
        empty_QK = weights_Qn.new_zeros(len(part_QD), classes)
        found.append(empty_QK.scatter_add(1, labels_N[who_Qn], weights_Qn))
    return torch.cat(found)
