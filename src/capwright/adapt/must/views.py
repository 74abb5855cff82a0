"""What a step of MUST sees: a weak and a strong view of every picture, and its hidden patches.

Weak, for the teacher: the shorter side to S pixels (bicubic), a random crop. Strong, for the
student: a random resized crop, mirrored or not, and RandAugment's operations (Cubuk et al., arXiv
1909.13719; those of pretrain/replay.py), each with the probability 1/2 and a strength around
`level`. Everything is drawn from (seed, step, place in the global batch), so neither the number of
processes nor a restart changes a picture.

Shapes: S side of a view, h and w patches.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from capwright.adapt.must.config import Config
from capwright.adapt.must.masks import draw_mask
from capwright.core.errors import CapwrightError
from capwright.datasets.sets import ClassificationItem
from capwright.evaluate.transfer.loop import Batches
from capwright.pretrain.distributed import ALONE, Group
from capwright.pretrain.replay import draw, replay

OPERATION_CHANCE = 0.5
LEVEL_DEVIATION = 0.05


class Views(NamedTuple):
    """Of one picture."""

    weak_SS3: NDArray[np.uint8]
    strong_SS3: NDArray[np.uint8]
    hidden_hw: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ViewMaker:
    """Draws the views of a picture; it pickles."""

    config: Config
    size: int  # S
    grid: tuple[int, int]  # h, w
    square: int  # patches a side of what is hidden together

    def __call__(self, item: ClassificationItem, rng: Generator) -> Views:
        """The mask is drawn last, so a run without masks sees the same pictures."""
        picture = item.image.convert("RGB")
        weak_SS3 = weak_view(picture, self.size, rng)
        strong_SS3 = strong_view(picture, self.size, self.config, rng)
        hidden_hw = draw_mask(rng, self.grid, self.square, self.config.mask_ratio)
        return Views(weak_SS3, strong_SS3, hidden_hw)


def weak_view(picture: Image.Image, size: int, rng: Generator) -> NDArray[np.uint8]:
    """uint8 [S, S, 3]."""
    resized = transforms.resize(picture, [size], interpolation=transforms.InterpolationMode.BICUBIC)
    top = int(rng.integers(resized.height - size + 1))
    left = int(rng.integers(resized.width - size + 1))
    return np.array(resized.crop((left, top, left + size, top + size)))


def strong_view(
    picture: Image.Image, size: int, config: Config, rng: Generator
) -> NDArray[np.uint8]:
    """uint8 [S, S, 3]."""
    level = float(np.clip(rng.normal(config.level, LEVEL_DEVIATION), 0, 1))
    drawn = draw(
        rng, picture.width, picture.height,
        crop_area=config.crop_area, crop_aspect=config.crop_aspect,
        operations=config.operations, level=level,
    )  # fmt: skip
    kept = rng.random(config.operations) < OPERATION_CHANCE
    operations = tuple(o for o, keep in zip(drawn.operations, kept, strict=True) if keep)
    view_SS3 = replay(picture, drawn._replace(operations=operations), size)
    mirrored = config.flip and rng.random() < 0.5
    return np.array(view_SS3[:, ::-1] if mirrored else view_SS3)


class RankBatches(Batches):
    """The part of every step's views that belongs to one of several processes."""

    def __init__(self, *arguments: Any, group: Group = ALONE) -> None:
        super().__init__(*arguments)
        if self.batch % group.world:
            raise CapwrightError(
                f"batch is {self.batch}, which {group.world} processes cannot share equally: "
                f"choose a multiple of {group.world}"
            )
        self.group = group

    @property
    def places(self) -> range:
        """Which items of a step are read here."""
        share = self.batch // self.group.world
        return range(self.group.rank * share, (self.group.rank + 1) * share)


def stacked(views: list[Views]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weak [B, S, S, 3], strong [B, S, S, 3], hidden [B, h, w])."""
    weak, strong, hidden = (torch.from_numpy(np.stack(part)) for part in zip(*views, strict=True))
    return weak, strong, hidden
