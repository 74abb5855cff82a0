"""Depth by transfer: a decoder, or a linear probe, on an encoder that is frozen or fine-tuned.

Protocol transfer-depth/v1 (docs/protocols/transfer-depth-v1.md). Heads: GLPDepth's decoder on a
pyramid (`glp`, arXiv 2201.07436), transposed convolutions (`deconv`, arXiv 2205.13543), bins of
equal width (`linear`, as DINOv2 probes, arXiv 2304.07193). The loss is SiLog,
sqrt(mean d^2 - weight * mean(d)^2) with d = log answer - log truth, over pixels between both caps.

Metrics of Eigen et al. (arXiv 1406.2283), per picture and then the mean over pictures: RMSE,
AbsRel, log10, delta 1 to 3, inside the benchmark's crop (NYUv2: Eigen's, KITTI: Garg's) and between
both caps, answers clipped to them.

Shapes: B pictures, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import DepthItem, DepthSet
from capwright.dense.backbone import Backbone, Depths
from capwright.dense.depth_head import DeconvDepth, GlpDepth
from capwright.dense.linear_heads import LinearDepth
from capwright.dense.losses import silog_loss
from capwright.dense.pixel_model import PixelModel
from capwright.dense.pyramid import build_pyramid
from capwright.evaluate.dense_metrics import (
    CROPS,
    DEPTH_METRICS,
    Crop,
    depth_errors,
    known_depth,
)
from capwright.evaluate.outcomes import Outcomes, mean_outcomes
from capwright.evaluate.results import Protocol
from capwright.evaluate.transfer.pixel_values import Quantity, ReadOut, answers
from capwright.evaluate.transfer.pixel_views import ViewSettings

PROTOCOL = Protocol(name="transfer-depth", version="v1")
HEADS = ("glp", "deconv", "linear")
LEAST_LOG = 1e-6  # metres below which an answer is not told apart


@dataclass(frozen=True, kw_only=True)
class DepthSettings:
    """The head, the loss, what is done to pictures and how they are scored."""

    head: Literal["glp", "deconv", "linear"] = "glp"
    depths: Depths = "last"  # which maps of a plain encoder `glp` sees: ViTDet's, or "spread"
    width: int = 64  # channels of the decoder
    pyramid_width: int = 256  # channels of the pyramid below `glp`
    bins: int = 256  # of `linear`
    silog_weight: float = 0.5
    least_m: float | None = None  # caps; None: the set's
    most_m: float | None = None
    crop: Crop | None = None  # where pictures are scored; None: the set's usual one
    views: ViewSettings = field(default_factory=ViewSettings)
    read_out: ReadOut = field(default_factory=ReadOut)

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise CapwrightError(f"depth head {self.head!r}: allowed are {', '.join(HEADS)}")
        if self.crop is not None and self.crop not in CROPS:
            raise CapwrightError(f"crop {self.crop!r}: allowed are {', '.join(CROPS)}")
        if not 0 <= self.silog_weight <= 1:
            raise CapwrightError(
                f"silog_weight is {self.silog_weight}: allowed are 0 to 1, 0.5 is usual"
            )


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which pixels count."""

    least_m: float
    most_m: float
    crop: Crop


def scoring(settings: DepthSettings, pictures: DepthSet) -> Scoring:
    """The set's caps and crop, unless the settings name other ones.

    Raises CapwrightError for caps in the wrong order and a crop that the set does not list.
    """
    least_m = pictures.least_m if settings.least_m is None else settings.least_m
    most_m = pictures.most_m if settings.most_m is None else settings.most_m
    if not 0 <= least_m < most_m:
        raise CapwrightError(
            f"depths from {least_m} to {most_m} m: the least must be below the most"
        )
    crop: Crop = settings.crop or pictures.crops[0]  # type: ignore[assignment]  # sets say a str
    if crop not in pictures.crops:
        raise CapwrightError(
            f"{pictures.name} is not scored in the crop {crop!r}: allowed are "
            f"{', '.join(pictures.crops)}; set depth.crop to one of them, or leave it out"
        )
    return Scoring(least_m=least_m, most_m=most_m, crop=crop)


def build(backbone: Backbone, settings: DepthSettings, caps: Scoring) -> PixelModel:
    """The encoder with a fresh head."""
    if settings.head == "linear":
        linear = LinearDepth(
            backbone.channels, least_m=caps.least_m, most_m=caps.most_m, bins=settings.bins
        )
        return PixelModel(backbone, None, linear)
    if settings.head == "deconv":
        deconv = DeconvDepth(backbone.channels, most_m=caps.most_m, width=settings.width)
        return PixelModel(backbone, None, deconv)
    pyramid = build_pyramid(backbone, width=settings.pyramid_width)
    glp: nn.Module = GlpDepth(pyramid.channels, most_m=caps.most_m, width=settings.width)
    return PixelModel(backbone, pyramid, glp)


def quantity(settings: DepthSettings, caps: Scoring) -> Quantity:
    """Depth as `pixel_values` takes it."""

    def loss(metres_B1HW: Tensor, true_B1HW: Tensor) -> Tensor:
        true_BHW = true_B1HW[:, 0]
        valid_BHW = (true_BHW > caps.least_m) & (true_BHW < caps.most_m)
        logs_BHW = metres_B1HW[:, 0].clamp(min=LEAST_LOG).log()
        return silog_loss(logs_BHW, true_BHW, weight=settings.silog_weight, valid_BHW=valid_BHW)

    return Quantity(name="depth", label=_depth_1HW, loss=loss, most=caps.most_m)


def measure(
    model: PixelModel,
    pictures: DepthSet,
    numbers: Sequence[int],
    settings: DepthSettings,
) -> tuple[dict[str, float | None], Outcomes]:
    """Metrics over the pictures `numbers`, and each picture's; those without a known pixel are
    left out. Raises CapwrightError where none has one.
    """
    caps = scoring(settings, pictures)
    keys: list[str] = []
    rows: list[dict[str, float] | None] = []
    told = answers(
        model, pictures, numbers, quantity(settings, caps), settings.views, settings.read_out
    )
    for key, pred_1HW, true_1HW in told:
        valid_HW = known_depth(
            true_1HW[0], least_m=caps.least_m, most_m=caps.most_m, crop=caps.crop
        )
        clipped_HW = np.clip(pred_1HW[0], caps.least_m, caps.most_m)
        keys.append(key)
        rows.append(depth_errors(clipped_HW, true_1HW[0], valid_HW))
    known = [row for row in rows if row is not None]
    if not known:
        raise CapwrightError(
            f"none of the {len(rows)} test pictures of {pictures.name} has a known depth between "
            f"{caps.least_m} and {caps.most_m} m inside the crop {caps.crop!r}: check the folder "
            "with `capwright data check`, or set other caps or another crop"
        )
    metrics: dict[str, float | None] = {
        name: float(np.mean([row[name] for row in known])) for name in DEPTH_METRICS
    }
    return metrics, mean_outcomes(keys, rows, DEPTH_METRICS)


def _depth_1HW(item: DepthItem) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.where(np.isfinite(item.depth_HW), item.depth_HW, 0)[None].astype(np.float32)
