"""Patches that are unlike all others (they hold global notes of the tower), found and replaced.

Local outlier factor (Breunig et al., SIGMOD 2000) with squared Euclidean distances: the density at
a patch's k nearest neighbours over its own, where the density is the inverse of the mean
reachability distance, reach(a, b) = max(distance of b to its k-th neighbour, distance of a and b).

Shapes: B pictures, P patches, D features, K neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def outlier_factor(patches_BPD: Tensor, neighbours: int) -> Tensor:
    """The factor of every patch, [B, P]: about 1 for ordinary ones, above for outliers."""
    distance_BPP = torch.cdist(patches_BPD, patches_BPD).square()
    distance_BPP.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    count = min(neighbours, patches_BPD.shape[1] - 1)
    near_BPK, index_BPK = distance_BPP.topk(count, largest=False)
    kth_BP = near_BPK[..., -1]
    reach_BPK = torch.maximum(near_BPK, _at(kth_BP, index_BPK))
    density_BP = 1 / reach_BPK.mean(dim=-1).clamp(min=1e-12)
    return _at(density_BP, index_BPK).mean(dim=-1) / density_BP


def strangest(patches_BPD: Tensor, *, share: float, neighbours: int) -> Tensor:
    """The `share` of each picture's patches with the largest factor, bool [B, P]."""
    count = int(share * patches_BPD.shape[1])
    mask_BP = torch.zeros(patches_BPD.shape[:2], dtype=torch.bool, device=patches_BPD.device)
    if count:
        chosen = outlier_factor(patches_BPD, neighbours).topk(count, dim=1).indices
        mask_BP.scatter_(1, chosen, True)
    return mask_BP


def repair(patches_BPD: Tensor, broken_BP: Tensor, grid: tuple[int, int]) -> Tensor:
    """Each broken patch becomes the mean of its sound 3x3 neighbours; without any it stays."""
    as_grid = patches_BPD.transpose(1, 2).unflatten(2, grid)
    sound = (~broken_BP).to(patches_BPD.dtype).unflatten(1, grid)[:, None]
    total = F.avg_pool2d(as_grid * sound, 3, stride=1, padding=1)
    weight = F.avg_pool2d(sound, 3, stride=1, padding=1)
    mean_BPD = (total / weight.clamp(min=1e-6)).flatten(2).transpose(1, 2)
    fixed_BP = broken_BP & (weight.flatten(1) > 0)
    return torch.where(fixed_BP[..., None], mean_BPD, patches_BPD)


def _at(values_BP: Tensor, index_BPK: Tensor) -> Tensor:
    return values_BP.gather(1, index_BPK.flatten(1)).view_as(index_BPK)
