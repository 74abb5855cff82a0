"""UperNet (Xiao et al., "Unified Perceptual Parsing", arXiv 1807.10221): pooled grids and an FPN.

The coarsest map is pooled to grids of 1, 2, 3 and 6 cells, each with a 1x1 convolution, enlarged
and joined to it (PSPNet's module). From there a feature pyramid network goes down: every finer map
is the sum of its own 1x1 convolution and the enlarged coarser one, then a 3x3 convolution. All
levels, enlarged to the finest, are joined, and a last 3x3 and 1x1 convolution give the logits.
Every convolution but the last has BatchNorm and ReLU.

Shapes: B pictures, D features, C classes, h and w of a map, H and W asked for.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

BINS = (1, 2, 3, 6)


class UperNet(nn.Module):
    """Maps, finest first, to logits."""

    def __init__(
        self, channels: Sequence[int], classes: int, *, width: int = 512, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), Conv2dNormActivation(channels[-1], width, 1))
            for bins in BINS
        )
        self.top = Conv2dNormActivation(channels[-1] + len(BINS) * width, width, 3)
        self.lateral = nn.ModuleList(Conv2dNormActivation(d, width, 1) for d in channels[:-1])
        self.smooth = nn.ModuleList(Conv2dNormActivation(width, width, 3) for _ in channels[:-1])
        self.join = Conv2dNormActivation(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits [B, C, H, W] at `size` = (H, W)."""
        coarsest = maps[-1]
        pooled = [_to(pool(coarsest), coarsest) for pool in self.pooled]
        x = self.top(torch.cat([coarsest, *pooled], dim=1))
        levels = [x]
        sums = zip(reversed(self.lateral), reversed(self.smooth), reversed(maps[:-1]), strict=True)
        for lateral, smooth, finer in sums:
            own = lateral(finer)
            x = own + _to(x, own)
            levels.append(smooth(x))
        joined = self.join(torch.cat([_to(level, levels[-1]) for level in levels], dim=1))
        logits = self.classify(self.dropout(joined))
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _to(small: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(small, size=like.shape[-2:], mode="bilinear", align_corners=False)
