"""FiLM on frozen features of several depths, and a compact decoder that makes metres of them.

    F'_l = gamma_l * F_l + beta_l                         at every depth l
    x    = sum over l of conv_1x1_l(F'_l)                 at the finest grid
    metres = most * sigmoid(deconvolutions(x))            dense/depth_head.py, DeconvDepth

The decoder doubles the grid as often as the stride allows, three times at most; a last bilinear
step brings it to the picture. Its last bias is such that its first answers are about the usual
depth of the set. The arm `decoder` has no FiLM but, in its place, a hidden layer in every
conv_1x1_l, with so many channels that as many parameters learn as in the arm `mirror`.

Shapes: B pictures, D features of a depth, N channels of the decoder, h and w of its grid, H and W
asked for.
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.adapt.mirror_depth.conditions import Constants, Mirror, Prompts
from capwright.adapt.mirror_depth.config import CONSTANT, DECODER, MIRROR, PROMPTS, Config
from capwright.dense.backbone import Backbone, Origin
from capwright.dense.depth_head import DeconvDepth
from capwright.dense.pixel_model import PixelModel
from capwright.evaluate.encoder import Encoder

DOUBLINGS = 3  # at most
WIDEST = 65_536  # channels that a hidden layer may have


class CompactDecoder(nn.Module):
    """Maps of several depths, finest first, to metres; `hidden` 0 is no hidden layer."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        most_m: float,
        width: int,
        usual_m: float | None = None,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(_reduce(depth, hidden, width) for depth in channels)
        doublings = min(DOUBLINGS, int(math.log2(strides[0])))
        self.enlarge = DeconvDepth((width,), most_m=most_m, width=width, doublings=doublings)
        if usual_m is not None:
            share = usual_m / most_m
            last: Any = self.enlarge.predict
            nn.init.constant_(last[-1].bias, math.log(share / (1 - share)))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Metres [B, 1, H, W] at `size` = (H, W)."""
        grid = maps[0].shape[-2:]
        x_BNhw = torch.zeros((), device=maps[0].device)
        for conv, each in zip(self.reduce, maps, strict=True):
            reduced = conv(each)
            if reduced.shape[-2:] != grid:
                reduced = F.interpolate(reduced, size=grid, mode="bilinear", align_corners=False)
            x_BNhw = x_BNhw + reduced
        metres: Tensor = self.enlarge([x_BNhw], size)
        return metres


class ModulatedDecoder(nn.Module):
    """A head for PixelModel: `condition` gives gamma and beta; None leaves the features as they
    are.
    """

    def __init__(self, condition: nn.Module | None, decoder: CompactDecoder) -> None:
        super().__init__()
        self.condition, self.decoder = condition, decoder

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Metres [B, 1, H, W] at `size` = (H, W)."""
        if self.condition is not None:
            maps = modulated(maps, self.condition())
        metres: Tensor = self.decoder(maps, size)
        return metres


def modulated(maps: Sequence[Tensor], film: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """gamma * F + beta at every depth, each [B, D, h, w]."""
    return [
        gamma_D[:, None, None] * each + beta_D[:, None, None]
        for each, (gamma_D, beta_D) in zip(maps, film, strict=True)
    ]


def frozen_backbone(encoder: Encoder) -> Backbone:
    """The image tower of a CLIP, which shares its weights, with the maps of four depths."""
    backbone = Backbone(
        encoder.model.visual,
        Origin(name=encoder.name, pretrained=encoder.pretrained),
        mean=encoder.mean,
        std=encoder.std,
        image_size=encoder.image_size,
        depths="spread",
    )
    backbone.freeze()
    return backbone


def build(
    encoder: Encoder,
    config: Config,
    arm: str,
    *,
    most_m: float,
    seed: int,
    usual_m: float | None = None,
) -> PixelModel:
    """The frozen tower with the arm's head; decoders without hidden layers begin alike.

    A decoder answers about `usual_m` at first (None: half of `most_m`). Raises CapwrightError where
    the text tower cannot take the mirror.
    """
    backbone = frozen_backbone(encoder)
    hidden = hidden_channels(encoder, config, backbone) if arm == DECODER else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = CompactDecoder(
            backbone.channels, backbone.strides, most_m=most_m, width=config.width,
            usual_m=usual_m, hidden=hidden,
        )  # fmt: skip
        condition = None if arm == DECODER else _condition(encoder, config, arm, backbone, seed)
    return PixelModel(backbone, None, ModulatedDecoder(condition, decoder))


def trained_parameters(module: nn.Module) -> int:
    """How many numbers of a module learn."""
    return sum(each.numel() for each in module.parameters() if each.requires_grad)


def hidden_channels(encoder: Encoder, config: Config, backbone: Backbone) -> int:
    """Of the arm `decoder`: those with which its parameters are nearest to the mirror's."""

    def decoder(hidden: int) -> int:
        with torch.device("meta"):
            module = CompactDecoder(
                backbone.channels, backbone.strides, most_m=1, width=config.width, hidden=hidden
            )
        return trained_parameters(module)

    with torch.random.fork_rng(devices=[]):
        mirror = trained_parameters(_condition(encoder, config, MIRROR, backbone, 0))
    wanted = mirror + decoder(0)
    above = 1 + bisect.bisect_left(range(1, WIDEST), wanted, key=decoder)
    return min((max(1, above - 1), above), key=lambda hidden: abs(decoder(hidden) - wanted))


def _reduce(depth: int, hidden: int, width: int) -> nn.Module:
    if not hidden:
        return nn.Conv2d(depth, width, 1)
    return nn.Sequential(nn.Conv2d(depth, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1))


def _condition(
    encoder: Encoder, config: Config, arm: str, backbone: Backbone, seed: int
) -> nn.Module:
    if arm == MIRROR:
        return Mirror(encoder, config.tokens, backbone.channels, seed)
    if arm == PROMPTS:
        return Prompts(encoder, config.prompts, backbone.channels)
    assert arm == CONSTANT, arm
    return Constants(backbone.channels)
