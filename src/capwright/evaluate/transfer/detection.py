"""Detection and instance segmentation by transfer: Mask R-CNN on an encoder, frozen or fine-tuned.

Protocol transfer-detection/v1 (docs/protocols/transfer-detection-v1.md). The model is
dense/mask_rcnn.py, the views are detection_views.py. The loss is the sum of Mask R-CNN's five:
object or not and box of the proposals, class, box and mask of the objects. A picture without
objects teaches what is none; regions of many objects (crowds) are left out of learning.

Test pictures are resized as a whole, their boxes and masks go back to the stored size, and box and
mask AP are COCO's (detection_metrics.py). One mask at a time has the picture's size, so memory
follows the pictures of a batch, not the set.

Shapes: N objects of a picture, H and W as resized, M side of a predicted mask.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from pycocotools import mask as run_lengths
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.core.reading import in_batches, in_order
from capwright.datasets.sets import DetectionSet
from capwright.dense.backbone import Backbone
from capwright.dense.mask_rcnn import (
    MASK_SHIFT,
    MaskRCNNSettings,
    build_mask_rcnn,
    mask_in_picture,
)
from capwright.evaluate.detection_metrics import Detections, coco_rows, measured
from capwright.evaluate.outcomes import Outcomes
from capwright.evaluate.results import Protocol
from capwright.evaluate.transfer.detection_views import (
    DetectionViews,
    LearningView,
    View,
    resized,
    size_at_test,
)
from capwright.pretrain.precision import Precision, arithmetic

PROTOCOL = Protocol(name="transfer-detection", version="v1")


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """The heads, how pictures are seen, and how test pictures are read."""

    heads: MaskRCNNSettings = field(default_factory=MaskRCNNSettings)
    views: DetectionViews = field(default_factory=DetectionViews)
    still_norms: bool = True  # BatchNorm of the encoder keeps its statistics: batches are small
    batch: int = 8  # test pictures of one pass
    precision: Precision = "fp32"  # of the test

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise CapwrightError(f"batches of {self.batch} test pictures: at least 1 is allowed")

    @property
    def method(self) -> str:
        """What learns, as results name it."""
        return "mask_rcnn"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A test picture, as the model takes it."""

    image_id: int
    size: tuple[int, int]  # height and width as stored
    pixels_3HW: Tensor  # uint8


def build(backbone: Backbone, settings: DetectionSettings, classes: int) -> nn.Module:
    """The encoder with fresh heads."""
    backbone.still_norms = settings.still_norms
    model: nn.Module = build_mask_rcnn(backbone, classes, settings.heads)
    return model


class DetectionLearner:
    """What the training loop needs (loop.Learner), with the view of an item."""

    def __init__(self, model: nn.Module, settings: DetectionSettings, classes: int) -> None:
        self.module = model
        self.view = LearningView(settings=settings.views, classes=classes)

    def loss(self, items: Sequence[View], draws: Generator) -> Tensor:
        """Sum of the losses of what `view` made of each item."""
        device = next(self.module.parameters()).device
        images = [pixels_3HW.to(device).float() / 255 for pixels_3HW, _ in items]
        targets = [{name: each.to(device) for name, each in own.items()} for _, own in items]
        losses: Mapping[str, Tensor] = self.module(images, targets)
        return torch.stack(list(losses.values())).sum()


def detections(
    model: nn.Module, pictures: DetectionSet, numbers: Sequence[int], settings: DetectionSettings
) -> list[dict[str, Any]]:
    """What is found in the pictures `numbers`, in COCO's result form, at their stored size."""
    model.eval()

    def ready(number: int) -> Seen:
        item = pictures[number]
        size = (item.image.height, item.image.width)
        pixels_3HW = resized(item.image, size_at_test(item.image, settings.views))
        return Seen(image_id=item.image_id, size=size, pixels_3HW=pixels_3HW)

    rows: list[dict[str, Any]] = []
    with Progress("test, detection", len(numbers), "pictures") as progress:
        read = in_order(ready, numbers, ahead=2 * settings.batch)
        for batch in in_batches(read, settings.batch):
            rows += _found(model, batch, pictures.category_ids, settings.precision)
            progress.advance(len(batch))
    return rows


def measure(
    model: nn.Module, pictures: DetectionSet, numbers: Sequence[int], settings: DetectionSettings
) -> tuple[dict[str, float | None], Outcomes]:
    """`box_ap`, `mask_ap` and the rest over the pictures `numbers`, and each picture's matches."""
    rows = detections(model, pictures, numbers, settings)
    return measured(annotations_of(pictures, numbers), rows, ("box", "mask"))


def annotations_of(pictures: DetectionSet, numbers: Sequence[int]) -> dict[str, Any]:
    """The set's annotations of the pictures `numbers` alone."""
    images = [pictures.annotations["images"][number] for number in numbers]
    ids = {image["id"] for image in images}
    rows = [row for row in pictures.annotations["annotations"] if row["image_id"] in ids]
    return {**pictures.annotations, "images": images, "annotations": rows}


def require_objects(pictures: DetectionSet, numbers: Sequence[int]) -> None:
    """Raise CapwrightError where there is nothing to learn."""
    rows = annotations_of(pictures, numbers)["annotations"]
    if all(row.get("iscrowd", 0) for row in rows):
        raise CapwrightError(
            f"none of the {len(numbers)} training pictures of {pictures.name} has an object: raise "
            "the fraction, or check the annotations with `capwright data check`"
        )


@torch.no_grad()
def _found(
    model: nn.Module, batch: Sequence[Seen], category_ids: Sequence[int], precision: Precision
) -> Iterator[dict[str, Any]]:
    device = next(model.parameters()).device
    images = [seen.pixels_3HW.to(device).float() / 255 for seen in batch]
    with arithmetic(precision, device):
        found = model(images)
    for seen, one in zip(batch, found, strict=True):
        yield from _as_stored(seen, {name: each.cpu() for name, each in one.items()}, category_ids)


def _as_stored(
    seen: Seen, found: Mapping[str, Tensor], category_ids: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Boxes and masks at the size of the stored picture."""
    (height, width), (high, wide) = seen.size, seen.pixels_3HW.shape[1:]
    down, across = height / high, width / wide
    boxes_N4 = found["boxes"].double().numpy() * np.array([across, down, across, down])
    rows = coco_rows(
        Detections(
            image_id=seen.image_id,
            boxes_N4=boxes_N4,
            scores_N=found["scores"].double().numpy(),
            labels_N=found["labels"].numpy() - 1,  # without the background
        ),
        category_ids,
    )
    shift = (MASK_SHIFT * across, MASK_SHIFT * down)
    for row, box, mask_1MM in zip(rows, boxes_N4.tolist(), found["masks"], strict=True):
        mask_HW = mask_in_picture(mask_1MM[0], box, seen.size, shift)
        yield {**row, "segmentation": run_lengths.encode(np.asfortranarray(mask_HW, np.uint8))}
