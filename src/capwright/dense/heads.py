"""Light heads that turn an encoder's feature map into a label or a depth at every pixel.

BatchNorm -> 1x1 convolution -> bilinear doubling -> 3x3 convolution -> 1x1 convolution, then
bilinear to the size asked for. Small enough that what it reaches is the encoder's merit. Depth is
predicted as log metres around a given mean, so an untrained head answers with a plausible distance.

Shapes: B pictures, D features, C outputs, h and w of the feature map, H and W asked for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LightHead(nn.Module):
    """Feature map [B, D, h, w] -> [B, C, H, W]: `offset` and what is learned."""

    def __init__(
        self, features: int, outputs: int, *, hidden: int = 64, offset: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(features)
        self.reduce = nn.Conv2d(features, hidden, 1)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.predict = nn.Conv2d(hidden, outputs, 1)
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.zeros_(self.predict.bias)  # type: ignore[arg-type]
        # apart from the bias, which weight decay would pull to zero
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, feats_BDhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Predict at `size` = (H, W)."""
        x = F.gelu(self.reduce(self.norm(feats_BDhw)))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.predict(F.gelu(self.mix(x))) + self.offset
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class DenseHeads(nn.Module):
    """A segmentation and a depth head on one encoder; they share nothing but its features."""

    def __init__(
        self, features: int, classes: int, *, hidden: int = 64, mean_log_depth: float = 0.0
    ) -> None:
        super().__init__()
        self.segmentation = LightHead(features, classes, hidden=hidden)
        self.depth = LightHead(features, 1, hidden=hidden, offset=mean_log_depth)

    def forward(self, feats_BDhw: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return logits [B, C, H, W] and log metres [B, H, W]."""
        return self.segmentation(feats_BDhw, size), self.depth(feats_BDhw, size)[:, 0]


def mean_log(depth_NHW: Tensor) -> float:
    """Mean of log metres over pixels whose depth is known; 0 without any."""
    known = depth_NHW[depth_NHW > 0]
    return float(torch.log(known).mean()) if known.numel() else 0.0
