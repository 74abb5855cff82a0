"""Pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020, arXiv 2005.08104).

Scores flow between neighbours of similar colour, ten times:

    m_i <- sum_j a_ij m_j,   a_ij = softmax_j( mean over channels of -|x_i - x_j| / (w s_i) )

j are the eight neighbours at each dilation, s_i the channel's deviation among them, w = 0.1.

Shapes: B pictures, C classes, K neighbours.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS, STEPS, WIDTH, FLOOR = (8, 16), 10, 0.1, 1e-8


def refine(
    scores_BCHW: Tensor,
    images_B3HW: Tensor,
    *,
    dilations: Sequence[int] = DILATIONS,
    steps: int = STEPS,
) -> Tensor:
    """Scores of the same shape that follow the picture's edges."""
    around = torch.stack(list(_neighbours(images_B3HW, dilations)))
    everyone = torch.cat([around, images_B3HW[None]])
    deviation = everyone.std(dim=0, correction=0)
    closeness = -(around - images_B3HW).abs() / (WIDTH * deviation + FLOOR)
    weight_KBHW = torch.softmax(closeness.mean(dim=2), dim=0)
    for _ in range(steps):
        moved = zip(weight_KBHW, _neighbours(scores_BCHW, dilations), strict=True)
        scores_BCHW = torch.stack([weight[:, None] * part for weight, part in moved]).sum(dim=0)
    return scores_BCHW


def _neighbours(values_BCHW: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The picture shifted to each neighbour; beyond the edge it repeats."""
    height, width = values_BCHW.shape[-2:]
    for dilation in dilations:
        padded = F.pad(values_BCHW, (dilation,) * 4, mode="replicate")
        for down in (0, dilation, 2 * dilation):
            for right in (0, dilation, 2 * dilation):
                if (down, right) != (dilation, dilation):
                    yield padded[..., down : down + height, right : right + width]
