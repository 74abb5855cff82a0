"""Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446).

A feature pyramid network (torchvision's) of 256 channels. A level of stride s passes log2(s / 4)
times a 3x3 convolution, GroupNorm, ReLU and bilinear doubling (the finest once, without doubling),
so that all have the finest grid; they are summed, and a 1x1 convolution gives the outputs.

Shapes: B pictures, D features, C outputs, h and w of a map, H and W asked for.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

GROUPS = 32


class SemanticFpn(nn.Module):
    """Maps, finest first, to C outputs at every pixel."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        outputs: int,
        *,
        pyramid_width: int = 256,
        width: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(channels), pyramid_width)
        self.levels = nn.ModuleList(
            _level(pyramid_width, width, round(math.log2(stride / strides[0])))
            for stride in strides
        )
        self.dropout = nn.Dropout2d(dropout)
        self.predict = nn.Conv2d(width, outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Outputs [B, C, H, W] at `size` = (H, W)."""
        named = OrderedDict((str(number), each) for number, each in enumerate(maps))
        levels = list(self.pyramid(named).values())
        finest = levels[0].shape[-2:]
        summed: Tensor | int = 0
        for convolutions, level in zip(self.levels, levels, strict=True):
            x = convolutions(level)
            summed = summed + F.interpolate(x, size=finest, mode="bilinear", align_corners=False)
        out = self.predict(self.dropout(summed))
        return F.interpolate(out, size=size, mode="bilinear", align_corners=False)


def _level(inputs: int, width: int, doublings: int) -> nn.Module:
    # at least four channels a group, as 128 in 32: one alone, in a map of one cell, has no norm
    fitting = (g for g in (GROUPS, 16, 8, 4, 2, 1) if width % g == 0 and (width >= 4 * g or g == 1))
    norm = partial(nn.GroupNorm, next(fitting))
    parts: list[nn.Module] = []
    for number in range(max(1, doublings)):
        parts.append(
            Conv2dNormActivation(inputs if not number else width, width, 3, norm_layer=norm)
        )
        if doublings:
            parts.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*parts)
