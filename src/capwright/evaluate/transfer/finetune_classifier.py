"""Fine-tuning for classification: a linear layer on the picture's vector, everything learns.

Views: a random crop of part of the area, resized, mirrored with probability 1/2. Mixup (Zhang et
al., arXiv 1710.09412) mixes each picture of a batch with its mirror image in the batch's order,
x = a x_i + (1 - a) x_j, y likewise, with one a ~ Beta(mixup, mixup) a batch. Label smoothing e
(Szegedy et al., arXiv 1512.00567): targets (1 - e) y + e / K. The loss is the cross-entropy.

Shapes: B pictures, S side, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import ClassificationItem, ClassificationSet
from capwright.dense.backbone import Backbone
from capwright.evaluate.transfer.vectors import Kind, check_label, vectors

TRIES = 10  # crops drawn before the whole picture is taken


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What is done to pictures and targets while learning."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    mixup: float = 0.0  # of Beta(mixup, mixup); 0: none
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_area
        if not 0 < low <= high <= 1 or self.mixup < 0 or not 0 <= self.label_smoothing < 1:
            raise CapwrightError(
                f"crops of {low} to {high} of the area, mixup {self.mixup} and label smoothing "
                f"{self.label_smoothing}: areas are above 0 and at most 1, mixup is at least 0, "
                "smoothing at least 0 and below 1"
            )


class Classifier(nn.Module):
    """Encoder and linear layer: normalised pictures to logits [B, K]."""

    def __init__(self, backbone: Backbone, classes: int, kind: Kind) -> None:
        super().__init__()
        self.backbone, self.kind = backbone, kind
        side = backbone.image_size
        with torch.no_grad():
            blank = torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device)
            features = vectors(backbone.eval(), blank, kind).shape[1]
        self.predict = nn.Linear(features, classes)
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.zeros_(self.predict.bias)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """[B, K]."""
        logits: Tensor = self.predict(vectors(self.backbone, images_B3SS, self.kind))
        return logits


@dataclass(frozen=True, kw_only=True)
class ClassifierView:
    """An item to (pixels uint8 [3, S, S], label); runs in the workers that read."""

    pictures: ClassificationSet
    settings: FineTuning
    size: int  # S

    def __call__(self, item: ClassificationItem, draws: np.random.Generator) -> tuple[Tensor, int]:
        """A random crop, by the draws."""
        check_label(item, self.pictures)
        return random_view(item.image, self.settings, self.size, draws), item.label


class ClassifierLearner:
    """What the training loop needs (loop.Learner), with the view of an item."""

    def __init__(
        self, model: Classifier, pictures: ClassificationSet, settings: FineTuning, size: int
    ) -> None:
        self.module, self.settings = model, settings
        self.classes = len(pictures.classes)
        self.view = ClassifierView(pictures=pictures, settings=settings, size=size)

    def loss(self, items: Sequence[tuple[Tensor, int]], draws: np.random.Generator) -> Tensor:
        """Scalar loss of what `view` made of each item."""
        pixels, labels = zip(*items, strict=True)
        device = next(self.module.parameters()).device
        images_B3SS = self.module.backbone.normalised(torch.stack(pixels).to(device))
        targets_BK = F.one_hot(torch.tensor(labels, device=device), self.classes).float()
        if self.settings.mixup:
            share = float(draws.beta(self.settings.mixup, self.settings.mixup))
            images_B3SS, targets_BK = (mixed(each, share) for each in (images_B3SS, targets_BK))
        logits_BK = self.module(images_B3SS).float()
        return F.cross_entropy(logits_BK, targets_BK, label_smoothing=self.settings.label_smoothing)


def mixed(values: Tensor, share: float) -> Tensor:
    """`share` of each value and the rest of its counterpart from the other end of the batch."""
    return share * values + (1 - share) * values.flip(0)


def random_view(
    image: Image.Image, settings: FineTuning, size: int, draws: np.random.Generator
) -> Tensor:
    """A random crop of a picture, uint8 [3, S, S]."""
    top, left, height, width = random_box(image.height, image.width, settings, draws)
    view = transforms.resized_crop(
        image.convert("RGB"), top, left, height, width, [size, size],
        interpolation=transforms.InterpolationMode.BICUBIC,
    )  # fmt: skip
    pixels_3SS: Tensor = transforms.pil_to_tensor(view)
    return pixels_3SS.flip(-1) if settings.flip and draws.random() < 0.5 else pixels_3SS


def random_box(
    height: int, width: int, settings: FineTuning, draws: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop; the whole picture where none fits in ten tries."""
    low, high = (math.log(each) for each in settings.crop_aspect)
    for _ in range(TRIES):
        area = height * width * draws.uniform(*settings.crop_area)
        aspect = math.exp(draws.uniform(low, high))
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = draws.integers(height - tall + 1), draws.integers(width - wide + 1)
            return int(top), int(left), tall, wide
    return 0, 0, height, width
