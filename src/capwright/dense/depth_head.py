"""Depth decoders: GLPDepth's with selective feature fusion, and a plain stack of deconvolutions.

`GlpDepth` (Kim et al., "Global-Local Path Networks", arXiv 2201.07436) carries the coarsest map up
and at every finer one fuses both: from their join three 3x3 convolutions give two maps of weights
between 0 and 1, one for the local and one for the global features, and the weighted sum goes on.
`DeconvDepth` is the simpler head of later work with masked image modelling (Xie et al., arXiv
2205.13543): three transposed convolutions of kernel 2 on the coarsest map, then a 3x3 convolution.
Both end at full size with two 3x3 convolutions and answer sigmoid * the largest distance.

Both work from stride 16 as from 32: what the decoder does not double, the last bilinear step does.

Shapes: B pictures, N channels of the decoder, h and w of a map, H and W asked for.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation


class SelectiveFusion(nn.Module):
    """Equation 1 of GLPDepth: how much of the local and of the global features, at every cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            Conv2dNormActivation(2 * width, width, 3),
            Conv2dNormActivation(width, max(2, width // 2), 3),
            nn.Conv2d(max(2, width // 2), 2, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, local_BNhw: Tensor, global_BNhw: Tensor) -> Tensor:
        """The weighted sum [B, N, h, w]."""
        weights_B2hw: Tensor = self.weigh(torch.cat([local_BNhw, global_BNhw], dim=1))
        return local_BNhw * weights_B2hw[:, :1] + global_BNhw * weights_B2hw[:, 1:]


class GlpDepth(nn.Module):
    """Maps, finest first, to metres."""

    def __init__(self, channels: Sequence[int], *, most_m: float, width: int = 64) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(depth, width, 1) for depth in channels)
        self.fuse = nn.ModuleList(SelectiveFusion(width) for _ in channels[:-1])
        self.predict = _predict(width)
        self.most_m = most_m

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Metres [B, 1, H, W] at `size` = (H, W)."""
        reduced = [conv(each) for conv, each in zip(self.reduce, maps, strict=True)]
        x = reduced[-1]
        for fuse, local in zip(reversed(self.fuse), reversed(reduced[:-1]), strict=True):
            x = fuse(local, _to(x, local.shape[-2:]))
        return _metres(self.predict(_to(x, size)), self.most_m)


class DeconvDepth(nn.Module):
    """The coarsest map to metres."""

    def __init__(
        self, channels: Sequence[int], *, most_m: float, width: int = 32, doublings: int = 3
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        depth = channels[-1]
        for _ in range(doublings):
            parts += [
                nn.ConvTranspose2d(depth, width, 2, stride=2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            depth = width
        parts.append(Conv2dNormActivation(width, width, 3))
        self.enlarge = nn.Sequential(*parts)
        self.predict = _predict(width)
        self.most_m = most_m

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Metres [B, 1, H, W] at `size` = (H, W)."""
        return _metres(self.predict(_to(self.enlarge(maps[-1]), size)), self.most_m)


def _predict(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1)
    )


def _metres(logits_B1HW: Tensor, most_m: float) -> Tensor:
    return torch.sigmoid(logits_B1HW.float()) * most_m


def _to(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
