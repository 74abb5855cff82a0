"""Stage 2 at the test: pictures to proposals, opinions and a class at every pixel.

Every picture is brought to its test size, gives masks there, and the masks go back to the size of
its labels. Masks are cut at 0.5 for CLIP's crops, which come from the stored picture; crops of
several pictures go through CLIP together (crops.py).

Shapes: Q proposals, C classes, E joint space, H and W of the stored picture, h and w at test size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from capwright.adapt.zsseg.crops import region_features
from capwright.adapt.zsseg.ensemble import (
    class_map,
    clip_probability,
    ensemble,
    exponents,
    proposal_probability,
)
from capwright.adapt.zsseg.one_stage import PixelClassifier
from capwright.adapt.zsseg.proposals import ProposalNetwork, enlarged
from capwright.adapt.zsseg.views import at_short_side
from capwright.core.errors import CapwrightError
from capwright.core.reading import in_batches, in_order
from capwright.datasets.sets import LabelledSet, SegmentationItem
from capwright.evaluate.encoder import Encoder
from capwright.pretrain.precision import Precision, arithmetic

PROPOSALS, CLIP = "proposals", "clip"  # readings of one opinion alone


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How pictures are answered."""

    mask_threshold: float = 0.5  # above it a pixel belongs to the crop
    pictures: int = 4  # whose crops go through CLIP together
    crops: int = 64  # of one pass
    precision: Precision = "auto"  # of the proposal network; CLIP keeps its own

    def __post_init__(self) -> None:
        if not 0 <= self.mask_threshold < 1 or min(self.pictures, self.crops) < 1:
            raise CapwrightError(
                f"a mask threshold of {self.mask_threshold}, {self.pictures} pictures and "
                f"{self.crops} crops a pass: the first is at least 0 and below 1, the others at "
                "least 1"
            )


@dataclass(frozen=True, kw_only=True)
class Opinions:
    """What is known of a picture before both opinions are joined."""

    proposal_QC: Tensor
    clip_QC: Tensor
    masks_QHW: Tensor  # sigmoids

    def labels(self, exponent_C: Tensor) -> NDArray[np.uint8]:
        """The class of every pixel [H, W]."""
        scores_CHW = class_map(ensemble(self.proposal_QC, self.clip_QC, exponent_C), self.masks_QHW)
        labels_HW: NDArray[np.uint8] = scores_CHW.argmax(dim=0).to(torch.uint8).cpu().numpy()
        return labels_HW


class Segmenter:
    """Both stages, ready to answer pictures with the classes `texts_CE`."""

    def __init__(
        self,
        network: ProposalNetwork,
        encoder: Encoder,
        texts_CE: Tensor,
        *,
        short_side: int,
        settings: InferenceSettings,
    ) -> None:
        self.network, self.encoder, self.texts_CE = network.eval(), encoder, texts_CE
        self.short_side, self.settings = short_side, settings
        self.scale = float(encoder.model.logit_scale.detach().exp())

    @torch.no_grad()
    def opinions(self, items: Sequence[SegmentationItem]) -> list[Opinions]:
        """One for each picture; their crops share CLIP's passes."""
        settings, device = self.settings, self.texts_CE.device
        proposed = [self._proposals(item) for item in items]
        images = [
            self.encoder.normalised(np.array(item.image.convert("RGB"))[None])[0].to(device)
            for item in items
        ]
        masks = [masks_QHW > settings.mask_threshold for _, masks_QHW in proposed]
        regions = region_features(self.encoder, images, masks, batch=settings.crops)
        return [
            Opinions(
                proposal_QC=proposal_probability(logits_QN),
                clip_QC=clip_probability(found, self.texts_CE, self.scale),
                masks_QHW=masks_QHW,
            )
            for (logits_QN, masks_QHW), found in zip(proposed, regions, strict=True)
        ]

    def _proposals(self, item: SegmentationItem) -> tuple[Tensor, Tensor]:
        """(logits [Q, C + 1], sigmoids of the masks [Q, H, W]) of a picture."""
        device, network = self.texts_CE.device, self.network
        pixels_3hw, _ = at_short_side(item.image, item.seg_HW, self.short_side)
        with arithmetic(self.settings.precision, device):
            last = network(pixels_3hw[None].to(device))[-1]
        logits_1QN = network.logits(last.embeddings_BQE.float(), self.texts_CE)
        size = (pixels_3hw.shape[1], pixels_3hw.shape[2])
        masks = enlarged(last.masks_BQhw.float(), size, network.settings.stride)
        masks = F.interpolate(
            masks, size=(item.image.height, item.image.width), mode="bilinear", align_corners=False
        )
        return logits_1QN[0], masks[0].sigmoid()


def readings(is_seen_C: Tensor, weights: Sequence[float]) -> dict[str, Tensor]:
    """Exponents of each way to join both opinions, by name: `w=0.8`, `proposals`, `clip`."""
    alone = {PROPOSALS: torch.ones_like(is_seen_C, dtype=torch.float32)}
    alone[CLIP] = torch.zeros_like(alone[PROPOSALS])
    return {reading(weight): exponents(is_seen_C, weight) for weight in weights} | alone


def reading(weight: float) -> str:
    """The name of an ensemble weight."""
    return f"w={weight:g}"


def answers(
    segmenter: Segmenter,
    pictures: LabelledSet[SegmentationItem],
    numbers: Sequence[int],
    exponent_C: dict[str, Tensor],
) -> Iterator[tuple[SegmentationItem, dict[str, NDArray[np.uint8]]]]:
    """(item, labels [H, W] by reading) of every picture, in order."""
    together = segmenter.settings.pictures
    read = in_order(pictures.__getitem__, numbers, ahead=2 * together)
    for batch in in_batches(read, together):
        for each, found in zip(batch, segmenter.opinions(batch), strict=True):
            yield each, {name: found.labels(e) for name, e in exponent_C.items()}


@torch.no_grad()
def one_stage_labels(
    network: PixelClassifier,
    item: SegmentationItem,
    texts_CE: Tensor,
    *,
    short_side: int,
    precision: Precision,
) -> NDArray[np.uint8]:
    """The baseline's class of every pixel [H, W]."""
    pixels_3hw, _ = at_short_side(item.image, item.seg_HW, short_side)
    with arithmetic(precision, texts_CE.device):
        logits = network(pixels_3hw[None].to(texts_CE.device), texts_CE).float()
    size = (item.image.height, item.image.width)
    logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    labels_HW: NDArray[np.uint8] = logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels_HW
