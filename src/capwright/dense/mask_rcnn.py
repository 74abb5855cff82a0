"""Mask R-CNN (He et al., arXiv 1703.06870) on any encoder: torchvision's, with other levels.

A plain vision transformer gets ViTDet's pyramid (arXiv 2203.16527), an encoder with stages a
feature pyramid network over them (Lin et al., arXiv 1612.03144). One more level, every second cell
of the coarsest map, is for proposals alone. Pictures come resized (`evaluate/transfer/
detection_views.py`); here they are normalised as the encoder wants it and padded, with its mean
colour, to sides that it can take. Boxes are computed in float32 whatever the products are: with
bf16 they would be off by several pixels.

Shapes: N objects of a picture, M side of a predicted mask, H and W of a picture, h and w of a grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from capwright.core.errors import CapwrightError
from capwright.dense.backbone import Backbone
from capwright.dense.pyramid import STRIDES, SimpleFeaturePyramid

BOX_CELLS, MASK_CELLS = 7, 14  # side of what the heads see of an object
BOX_HEADS = ("2fc", "4conv1fc")
NORMS = ("none", "layer")
# RoIAlign as torchvision has it reads the mask of an object half a pixel right and below of its
# box, so what is learned lies there
MASK_SHIFT = 0.5


@dataclass(frozen=True, kw_only=True)
class MaskRCNNSettings:
    """The heads; `canonical` is in pixels of the resized picture."""

    width: int = 256  # channels of every level
    anchors: tuple[float, ...] = (8,)  # sides, in strides of their level: 32 pixels to 512
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width of anchors
    canonical: float = 224  # objects of this side are read off the third level, smaller ones finer
    rpn_convolutions: int = 1
    box_head: Literal["2fc", "4conv1fc"] = "2fc"
    norm: Literal["none", "layer"] = "none"  # of the convolutions of both heads
    head_width: int = 1024  # of the box head's full connections
    mask_width: int = 256
    candidates: int = 2000  # a level, of which proposals are taken; half as many at the test
    proposals: int = 1000  # a picture
    sampled: int = 512  # proposals a picture that the box head learns from
    least_score: float = 0.05  # below it nothing is detected
    detections: int = 100  # a picture, at most

    def __post_init__(self) -> None:
        if self.box_head not in BOX_HEADS or self.norm not in NORMS:
            raise CapwrightError(
                f"box_head={self.box_head!r}, norm={self.norm!r}: box heads are "
                f"{', '.join(BOX_HEADS)}, norms {', '.join(NORMS)}"
            )
        lengths = (*self.anchors, *self.ratios, self.canonical)
        if not self.anchors or not self.ratios or min(lengths) <= 0:
            raise CapwrightError(
                f"anchors={self.anchors}, ratios={self.ratios}, canonical={self.canonical}: all "
                "are above 0, and there is at least one side and one ratio"
            )


class Levels(nn.Module):
    """Encoder and pyramid: normalised pictures to maps `0` (finest), `1`, … and `pool`, float32."""

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, width
        self.pyramid: nn.Module
        if backbone.plain:
            patch = backbone.strides[-1]
            simple = SimpleFeaturePyramid(backbone.channels, patch, width=width)
            self.pyramid, self.multiple = simple, simple.multiple
            # not rounded, as with patches of 14 pixels
            strides = [patch / 2 ** round(math.log2(patch / wanted)) for wanted in STRIDES]
        else:
            self.pyramid = FeaturePyramidNetwork(list(backbone.channels), width)
            self.multiple, strides = backbone.multiple, list(map(float, backbone.strides))
        self.strides = (*strides, 2 * strides[-1])

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """Maps [B, width, h, w] by name."""
        maps = self.backbone(images_B3HW)
        if isinstance(self.pyramid, SimpleFeaturePyramid):
            maps = self.pyramid(maps)
        else:
            maps = list(self.pyramid({str(i): each for i, each in enumerate(maps)}).values())
        levels = {str(number): each.float() for number, each in enumerate(maps)}
        levels["pool"] = levels[str(len(maps) - 1)][..., ::2, ::2]
        return levels


def build_mask_rcnn(backbone: Backbone, classes: int, settings: MaskRCNNSettings) -> MaskRCNN:
    """The encoder with fresh heads for `classes` classes and the background, which is class 0.

    Learning, it takes pictures (0 to 1, [3, H, W]) and targets, as torchvision's does. Else it
    gives, of each picture and in its pixels, `boxes` [N, 4], `labels` [N] from 1, `scores` [N] and
    `masks` [N, 1, M, M], the shares of each box (`mask_in_picture`).
    """
    levels = Levels(backbone, settings.width)
    width, norm = settings.width, LayerNorm2d if settings.norm == "layer" else None
    box_head: nn.Module = TwoMLPHead(width * BOX_CELLS**2, settings.head_width)
    if settings.box_head == "4conv1fc":
        size = (width, BOX_CELLS, BOX_CELLS)
        box_head = FastRCNNConvFCHead(size, [width] * 4, [settings.head_width], norm_layer=norm)
    anchors = _Anchors(settings.anchors, settings.ratios, levels.strides)
    model = MaskRCNN(
        levels,
        rpn_anchor_generator=anchors,
        rpn_head=_RegionHead(
            width, len(settings.anchors) * len(settings.ratios), settings.rpn_convolutions
        ),
        rpn_pre_nms_top_n_train=settings.candidates,
        rpn_pre_nms_top_n_test=max(1, settings.candidates // 2),
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_post_nms_top_n_test=settings.proposals,
        box_roi_pool=_pool(levels.strides, BOX_CELLS, settings.canonical),
        box_head=box_head,
        box_predictor=_BoxPredictor(settings.head_width, classes + 1),
        box_batch_size_per_image=settings.sampled,
        box_score_thresh=settings.least_score,
        box_detections_per_img=settings.detections,
        mask_roi_pool=_pool(levels.strides, MASK_CELLS, settings.canonical),
        mask_head=MaskRCNNHeads(width, (settings.mask_width,) * 4, 1, norm_layer=norm),
        mask_predictor=_MaskPredictor(settings.mask_width, settings.mask_width, classes + 1),
    )
    model.transform = _AsGiven(
        0, 0, list(backbone.mean), list(backbone.std), size_divisible=levels.multiple
    )
    return model


def mask_in_picture(
    mask_MM: Tensor, box: Sequence[float], size: tuple[int, int], shift: tuple[float, float]
) -> NDArray[np.bool_]:
    """The mask [H, W] of one object: 1 where its share at the pixel's centre is at least a half.

    `box` is x0, y0, x1, y1 in pixels of the picture of `size` (H, W), `shift` (x, y) MASK_SHIFT in
    them. Shares are interpolated; outside of the box the mask is 0. One object at a time needs no
    more memory than its own pixels.
    """
    height, width = size
    whole_HW = np.zeros(size, np.bool_)
    x0, y0, x1, y1 = box
    # pixels whose centres lie within
    left, top = max(0, math.ceil(x0 - 0.5)), max(0, math.ceil(y0 - 0.5))
    right, bottom = min(width, math.floor(x1 + 0.5)), min(height, math.floor(y1 + 0.5))
    if left >= right or top >= bottom:
        return whole_HW
    x_w = (torch.arange(left, right) + 0.5 - shift[0] - x0) / (x1 - x0) * 2 - 1
    y_h = (torch.arange(top, bottom) + 0.5 - shift[1] - y0) / (y1 - y0) * 2 - 1
    grid_hw2 = torch.stack(torch.meshgrid(x_w, y_h, indexing="xy"), dim=-1).to(mask_MM.dtype)
    shares_hw = F.grid_sample(
        mask_MM[None, None], grid_hw2[None], padding_mode="border", align_corners=False
    )[0, 0]
    whole_HW[top:bottom, left:right] = (shares_hw >= 0.5).numpy()
    return whole_HW


class _AsGiven(GeneralizedRCNNTransform):
    """Normalises and pads; nothing is resized, before or after."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        return result


class _Anchors(AnchorGenerator):
    """All sides and ratios at every level, at strides that need not be whole numbers."""

    def __init__(
        self, sides: Sequence[float], ratios: Sequence[float], strides: Sequence[float]
    ) -> None:
        sizes = tuple(tuple(side * stride for side in sides) for stride in strides)
        super().__init__(sizes, (tuple(ratios),) * len(strides))
        self.strides = strides

    def forward(self, image_list: Any, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """All anchors [A, 4] of each picture, level by level."""
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        steps = [[first.new_tensor(stride)] * 2 for stride in self.strides]
        grids = [list(each.shape[-2:]) for each in feature_maps]
        anchors_A4 = torch.cat(self.grid_anchors(grids, steps))
        return [anchors_A4 for _ in image_list.image_sizes]


class _RegionHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [each.float() for each in logits], [each.float() for each in deltas]


class _BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class _MaskPredictor(MaskRCNNPredictor):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        return logits.float()


def _pool(strides: Sequence[float], cells: int, canonical: float) -> MultiScaleRoIAlign:
    """Cells x cells features of an object; torchvision would guess the strides from a picture."""
    own = strides[:-1]  # the last level is for proposals
    pool = MultiScaleRoIAlign(
        [str(number) for number in range(len(own))],
        output_size=cells,
        sampling_ratio=2,
        canonical_scale=canonical,
    )
    pool.scales = [1 / stride for stride in own]
    finest, coarsest = round(math.log2(own[0])), round(math.log2(own[-1]))
    pool.map_levels = LevelMapper(finest, coarsest, canonical_scale=canonical)
    return pool
