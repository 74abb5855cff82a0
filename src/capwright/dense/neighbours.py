"""Segmentation by the nearest patches of labelled pictures: nothing is learned.

As retrieval-based scene understanding has it (Balazevic et al., "Towards In-Context Scene
Understanding", arXiv 2306.01667, section 3.1): every patch of the training pictures is kept as a
unit vector with the shares of the classes in its cell. A patch of a test picture attends to its k
most similar ones, with weights softmax(cosine / temperature), and its scores are the weighted mean
of their shares.

Shapes: B pictures, D features, M patches kept, C classes, h and w of the grid, H and W asked for.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEIGHBOURS, TEMPERATURE = 30, 0.02
CHUNK = 1024  # patches compared with all that are kept at a time


class NeighbourHead(nn.Module):
    """The last map to scores, by what is kept."""

    vectors_MD: Tensor
    shares_MC: Tensor

    def __init__(
        self,
        vectors_MD: Tensor,
        shares_MC: Tensor,
        *,
        neighbours: int = NEIGHBOURS,
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__()
        self.register_buffer("vectors_MD", F.normalize(vectors_MD, dim=1))
        self.register_buffer("shares_MC", shares_MC)
        self.neighbours, self.temperature = min(neighbours, len(vectors_MD)), temperature

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Scores [B, C, H, W] at `size` = (H, W): shares that add up to 1."""
        queries_BDhw = F.normalize(maps[-1], dim=1)
        batch, _, h, w = queries_BDhw.shape
        queries_QD = queries_BDhw.permute(0, 2, 3, 1).flatten(0, 2)
        scores_QC = torch.cat([self._scores(part_QD) for part_QD in queries_QD.split(CHUNK)])
        scores_BChw = scores_QC.view(batch, h, w, -1).permute(0, 3, 1, 2)
        return F.interpolate(scores_BChw, size=size, mode="bilinear", align_corners=False)

    def _scores(self, queries_QD: Tensor) -> Tensor:
        near_Qn, who_Qn = (queries_QD @ self.vectors_MD.T).topk(self.neighbours, dim=1)
        weights_Qn = (near_Qn.float() / self.temperature).softmax(dim=1)
        return torch.einsum("qn,qnc->qc", weights_Qn, self.shares_MC[who_Qn])


def cell_shares(seg_BHW: Tensor, classes: int, grid: tuple[int, int]) -> Tensor:
    """Share of each class in each cell of a grid [B, C, h, w]; 0 in a cell without a label."""
    one_hot_BCHW = F.one_hot(seg_BHW.long().clamp(max=classes), classes + 1).permute(0, 3, 1, 2)
    counts_BChw = F.adaptive_avg_pool2d(one_hot_BCHW[:, :classes].float(), grid)
    return counts_BChw / counts_BChw.sum(dim=1, keepdim=True).clamp(min=1e-9)
