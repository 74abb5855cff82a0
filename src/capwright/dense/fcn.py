"""A fully convolutional head on one map (Long et al., arXiv 1411.4038): UperNet's auxiliary head.

3x3 convolution, BatchNorm, ReLU, dropout, 1x1 convolution; bilinear to the size asked for.

Shapes: B pictures, D features, C classes, h and w of the map, H and W asked for.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation


class FcnHead(nn.Module):
    """The map number `level` to logits."""

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        level: int = 2,
        width: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.level = min(level, len(channels) - 1)
        self.layers = nn.Sequential(
            Conv2dNormActivation(channels[self.level], width, 3),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits [B, C, H, W] at `size` = (H, W)."""
        logits = self.layers(maps[self.level])
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
