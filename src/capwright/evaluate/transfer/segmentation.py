"""Segmentation by transfer: a head on an encoder that is frozen or fine-tuned.

Protocol transfer-segmentation/v1 (docs/protocols/transfer-segmentation-v1.md). Heads: UperNet with
an auxiliary FCN (`upernet`, arXiv 1807.10221) and Semantic FPN (`semantic_fpn`, arXiv 1901.02446),
on ViTDet's pyramid for a plain vision transformer (arXiv 2203.16527) and on the stages of a
hierarchical encoder; BatchNorm and a 1x1 convolution (`linear`); the nearest labelled patches
(`knn`, arXiv 2306.01667), which learns nothing.

The loss is the mean cross-entropy over labelled pixels, and `auxiliary_weight` times that of the
auxiliary head; with `class_balance` b a class weighs as its share of the training pixels to the -b,
scaled to a mean of 1 over pixels. Test pictures are resized to a shorter side, seen whole or
through windows whose logits are averaged, enlarged to the labels' size, and scored by
dense_metrics.py.

Shapes: B pictures, S side of a view, H and W of the labels, h and w as seen, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.core.reading import in_batches, in_order
from capwright.datasets.sets import IGNORE, SegmentationItem, SegmentationSet
from capwright.dense.backbone import Backbone, Depths
from capwright.dense.fcn import FcnHead
from capwright.dense.linear_heads import LinearHead
from capwright.dense.neighbours import NEIGHBOURS, TEMPERATURE
from capwright.dense.pixel_model import PixelModel
from capwright.dense.pyramid import build_pyramid
from capwright.dense.semantic_fpn import SemanticFpn
from capwright.dense.sliding import resize_short_side, slide
from capwright.dense.upernet import UperNet
from capwright.evaluate.dense_metrics import class_ious, segmentation_metrics
from capwright.evaluate.outcomes import Outcomes
from capwright.evaluate.results import Protocol
from capwright.evaluate.training_free import Counts
from capwright.evaluate.transfer.augment import LearningView, ViewSettings
from capwright.pretrain.precision import Precision, arithmetic

PROTOCOL = Protocol(name="transfer-segmentation", version="v1")
HEADS = ("upernet", "semantic_fpn", "linear", "knn")
LEAST_SHARE = 1e-6  # of a class's pixels, where the rare ones weigh more


@dataclass(frozen=True, kw_only=True)
class ReadOut:
    """How a test picture is seen."""

    short_side: int = 512  # 0: as stored
    longest: int = 2048  # side at most, when the shorter one is brought to `short_side`
    window: int = 512  # side of the windows; 0: the whole picture
    stride: int = 341
    flip: bool = False  # the mean of the picture's and of the mirrored picture's logits
    batch: int = 8  # windows of one pass, and pictures of one size
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if min(self.short_side, self.window) < 0 or self.batch < 1:
            raise CapwrightError(
                f"short_side={self.short_side}, window={self.window}, batch={self.batch}: the "
                "first two are at least 0, batch at least 1"
            )
        if self.window and not 0 < self.stride <= self.window:
            raise CapwrightError(
                f"windows of {self.window} pixels cannot move by {self.stride}: allowed are 1 to "
                f"{self.window}"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """The head, the loss, what is done to pictures and how they are read."""

    head: Literal["upernet", "semantic_fpn", "linear", "knn"] = "upernet"
    depths: Depths = "last"  # which maps of a plain encoder: ViTDet's, or MAE's "spread"
    width: int = 512  # channels of UperNet, or of Semantic FPN's levels
    pyramid_width: int = 256  # channels of the pyramid
    dropout: float = 0.1
    auxiliary_weight: float = 0.4  # of UperNet's FCN head; 0: none
    auxiliary_level: int = 2  # of the pyramid, from the finest
    class_balance: float = 0.0  # a class's weight in the loss is its share of pixels to the -this
    neighbours: int = NEIGHBOURS  # of knn
    temperature: float = TEMPERATURE
    kept_patches: int = 100_000  # at most, of all training pictures
    views: ViewSettings = field(default_factory=ViewSettings)
    read_out: ReadOut = field(default_factory=ReadOut)

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise CapwrightError(f"segmentation head {self.head!r}: allowed are {', '.join(HEADS)}")
        if self.class_balance < 0 or self.auxiliary_weight < 0:
            raise CapwrightError(
                f"class_balance={self.class_balance}, auxiliary_weight={self.auxiliary_weight}: "
                "both are at least 0"
            )
        if self.neighbours < 1 or self.kept_patches < 1 or self.temperature <= 0:
            raise CapwrightError(
                f"neighbours={self.neighbours}, kept_patches={self.kept_patches}, temperature="
                f"{self.temperature}: the first two are at least 1, the temperature is above 0"
            )


def build(backbone: Backbone, settings: SegmentationSettings, classes: int) -> PixelModel:
    """The encoder with a fresh head that learns."""
    if settings.head == "linear":
        return PixelModel(backbone, None, LinearHead(backbone.channels, classes))
    pyramid = build_pyramid(backbone, width=settings.pyramid_width)
    options = {"width": settings.width, "dropout": settings.dropout}
    if settings.head == "semantic_fpn":
        fpn = SemanticFpn(
            pyramid.channels, pyramid.strides, classes,
            pyramid_width=settings.pyramid_width, **options,  # type: ignore[arg-type]
        )  # fmt: skip
        return PixelModel(backbone, pyramid, fpn)
    auxiliary: nn.Module | None = None
    if settings.auxiliary_weight:
        auxiliary = FcnHead(
            pyramid.channels, classes, level=settings.auxiliary_level, dropout=settings.dropout
        )
    upernet = UperNet(pyramid.channels, classes, **options)  # type: ignore[arg-type]
    return PixelModel(backbone, pyramid, upernet, auxiliary)


def cross_entropy(logits_BCHW: Tensor, seg_BHW: Tensor, weight_C: Tensor | None = None) -> Tensor:
    """Weighted mean over labelled pixels; 0, with a gradient of 0, without any."""
    if not (seg_BHW != IGNORE).any():
        return logits_BCHW.sum() * 0.0
    return F.cross_entropy(logits_BCHW.float(), seg_BHW.long(), weight_C, ignore_index=IGNORE)


def class_weights(
    pictures: SegmentationSet, numbers: Sequence[int], balance: float
) -> Tensor | None:
    """Weights of the classes [C] by their shares of the pixels of `numbers`; None for balance 0.

    Reads every label once. A class without a pixel weighs as one of a millionth of them.
    """
    if not balance:
        return None
    counts_C = np.zeros(IGNORE + 1, np.int64)
    with Progress("count classes", len(numbers), "pictures") as progress:
        for item in in_order(pictures.__getitem__, numbers, ahead=16):
            counts_C += np.bincount(item.seg_HW.ravel(), minlength=IGNORE + 1)
            progress.advance()
    share_C = counts_C[: len(pictures.classes)] / max(1, counts_C[:IGNORE].sum())
    weight_C = np.maximum(share_C, LEAST_SHARE) ** -balance
    return torch.from_numpy(weight_C / max(LEAST_SHARE, (weight_C * share_C).sum())).float()


class SegmentationLearner:
    """What the training loop needs (loop.Learner), with the view of an item."""

    def __init__(
        self, model: PixelModel, settings: SegmentationSettings, weight_C: Tensor | None = None
    ) -> None:
        self.module, self.auxiliary_weight = model, settings.auxiliary_weight
        self.weight_C = weight_C
        red, green, blue = (round(255 * value) for value in model.backbone.mean)
        self.view = LearningView(settings=settings.views, fill=(red, green, blue))

    def loss(self, items: Sequence[tuple[Tensor, Tensor]], draws: Generator) -> Tensor:
        """Scalar loss of what `view` made of each item."""
        device = next(self.module.parameters()).device
        pixels_B3SS, seg_BSS = (torch.stack(part).to(device) for part in zip(*items, strict=True))
        logits, auxiliary = self.module.both(self.module.backbone.normalised(pixels_B3SS))
        weight_C = None if self.weight_C is None else self.weight_C.to(device)
        loss = cross_entropy(logits, seg_BSS, weight_C)
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * cross_entropy(auxiliary, seg_BSS, weight_C)
        return loss


@torch.no_grad()
def measure(
    model: PixelModel,
    pictures: SegmentationSet,
    numbers: Sequence[int],
    settings: SegmentationSettings,
) -> tuple[dict[str, float | None], Outcomes]:
    """Metrics over the pictures `numbers`, and each picture's pixels.

    Raises CapwrightError where no picture has a labelled pixel.
    """
    model.eval()
    counts = Counts(len(pictures.classes))
    keys: list[str] = []
    with Progress("test, segmentation", len(numbers), "pictures") as progress:
        read = in_order(pictures.__getitem__, numbers, ahead=2 * settings.read_out.batch)
        for items in in_batches(read, settings.read_out.batch, lambda item: item.image.size):
            labels_BHW = _labels(model, items, settings.read_out)
            for item, pred_HW in zip(items, labels_BHW, strict=True):
                keys.append(item.key)
                counts.add(pred_HW, item.seg_HW)
            progress.advance(len(items))
    if not counts.confusion_CC.any():
        raise CapwrightError(
            f"none of the {len(keys)} test pictures of {pictures.name} has a labelled pixel: check "
            "the folder with `capwright data check`"
        )
    ious = zip(pictures.classes, class_ious(counts.confusion_CC), strict=True)
    metrics = segmentation_metrics(counts.confusion_CC) | {f"iou/{c}": iou for c, iou in ious}
    return metrics, counts.outcomes(keys)


def resized(backbone: Backbone, items: Sequence[SegmentationItem], settings: ReadOut) -> Tensor:
    """Pictures of one size as the encoder takes them, [B, 3, h, w] on its device."""
    pixels_BHW3 = np.stack([np.asarray(item.image.convert("RGB")) for item in items])
    device = next(backbone.parameters()).device
    images_B3HW = torch.from_numpy(pixels_BHW3).to(device).permute(0, 3, 1, 2)
    images_B3HW = backbone.normalised(images_B3HW)
    if not settings.short_side:
        return images_B3HW
    return resize_short_side(images_B3HW, settings.short_side, settings.longest)


def require_batches(settings: SegmentationSettings, batch: int) -> None:
    """Raise CapwrightError where a head's BatchNorm would see one picture alone."""
    if batch < 2 and settings.head != "semantic_fpn":
        raise CapwrightError(
            f"batch={batch}: the head {settings.head} has batch norms, so schedule.batch must be "
            "at least 2"
        )


def _labels(
    model: PixelModel, items: Sequence[SegmentationItem], settings: ReadOut
) -> NDArray[np.integer]:
    """Class numbers [B, H, W] of pictures of one size."""
    images_B3hw = resized(model.backbone, items, settings)

    def seen(images: Tensor) -> Tensor:
        return slide(
            model, images, window=settings.window, stride=settings.stride, batch=settings.batch
        )

    with arithmetic(settings.precision, images_B3hw.device):
        logits_BChw = seen(images_B3hw)
        if settings.flip:
            logits_BChw = (logits_BChw + seen(images_B3hw.flip(-1)).flip(-1)) / 2
    size = items[0].seg_HW.shape
    logits_BCHW = F.interpolate(logits_BChw, size=size, mode="bilinear", align_corners=False)
    return logits_BCHW.argmax(dim=1).cpu().numpy()
