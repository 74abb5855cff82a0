"""From an encoder's maps to a pyramid of strides 4, 8, 16 and 32.

A plain vision transformer has one stride. ViTDet's simple feature pyramid (Li et al., "Exploring
Plain Vision Transformer Backbones for Object Detection", arXiv 2203.16527, section 3) makes the
other ones from its last map alone: transposed convolutions of stride 2 for finer maps, max pooling
for coarser ones, then a 1x1 and a 3x3 convolution, each with a LayerNorm over channels. With
patches of 14 pixels the strides are 3.5 to 28. Hierarchical encoders keep their stages as they are.

Shapes: B pictures, D features, h and w of a grid.
"""

import math
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from capwright.dense.backbone import Backbone

STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """Maps of a backbone to maps of rising stride; says how many channels and which strides."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int  # what both sides of a picture must be divisible by

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Finest first."""
        raise NotImplementedError


class StagePyramid(Pyramid):
    """The stages of a hierarchical encoder as they are."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.channels, self.strides = backbone.channels, backbone.strides
        self.multiple = backbone.multiple

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps themselves."""
        return list(maps)


class SimpleFeaturePyramid(Pyramid):
    """ViTDet's pyramid; with several maps level i is made of the i-th, else all of the one."""

    def __init__(self, channels: Sequence[int], stride: int, *, width: int = 256) -> None:
        super().__init__()
        # how often a map is doubled (negative: halved) to come next to the wanted stride
        doublings = [round(math.log2(stride / wanted)) for wanted in STRIDES]
        self.channels = (width,) * len(STRIDES)
        self.strides = tuple(round(stride / 2**times) for times in doublings)
        self.multiple = max(stride, max(math.ceil(stride / 2**times) for times in doublings))
        sources = list(channels) if len(channels) == len(STRIDES) else [channels[-1]] * len(STRIDES)
        self.levels = nn.ModuleList(
            _level(depth, width, times) for depth, times in zip(sources, doublings, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps [B, width, h, w]."""
        sources = maps if len(maps) == len(self.levels) else [maps[-1]] * len(self.levels)
        return [level(source) for level, source in zip(self.levels, sources, strict=True)]


def build_pyramid(backbone: Backbone, *, width: int = 256) -> Pyramid:
    """The pyramid that suits an encoder."""
    if not backbone.plain:
        return StagePyramid(backbone)
    return SimpleFeaturePyramid(backbone.channels, backbone.strides[-1], width=width)


def _level(depth: int, width: int, doublings: int) -> nn.Module:
    parts: list[nn.Module] = []
    for number in range(doublings):
        if number:
            parts += [LayerNorm2d(depth), nn.GELU()]
        parts.append(nn.ConvTranspose2d(depth, max(1, depth // 2), 2, stride=2))
        depth = max(1, depth // 2)
    if doublings < 0:
        parts.append(nn.MaxPool2d(2**-doublings))
    parts += [nn.Conv2d(depth, width, 1, bias=False), LayerNorm2d(width)]
    parts += [nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width)]
    return nn.Sequential(*parts)
