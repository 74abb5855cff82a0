"""Surface normals by transfer: what an encoder knows of the direction that a surface faces.

Protocol transfer-normals/v1 (docs/protocols/transfer-normals-v1.md). A head on the last map, linear
(`linear`: BatchNorm and a 1x1 convolution) or light (`light`: with a 3x3 convolution between two
1x1), on an encoder that is frozen, as CLIPTeX probes (arXiv 2310.14108), or fine-tuned. The loss is
1 - cos of the angle to the true normal, over all known pixels of the batch. A mirrored picture has
the normals' x turned round.

Metrics of Fouhey et al. (ICCV 2013), over all known pixels of all pictures: mean and median of the
angle in degrees, shares within 11.25, 22.5 and 30 degrees. The median comes from counts in steps of
0.01 degrees, so that memory does not grow with the set.

Shapes: B pictures, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import NormalsItem, NormalsSet
from capwright.dense.backbone import Backbone
from capwright.dense.heads import LightHead
from capwright.dense.linear_heads import LinearHead
from capwright.dense.pixel_model import PixelModel
from capwright.evaluate.dense_metrics import NORMALS_BOUNDS, angular_errors
from capwright.evaluate.outcomes import Outcome, Outcomes
from capwright.evaluate.results import Protocol
from capwright.evaluate.transfer.pixel_values import Quantity, ReadOut, answers
from capwright.evaluate.transfer.pixel_views import ViewSettings

PROTOCOL = Protocol(name="transfer-normals", version="v1")
HEADS = ("linear", "light")
MIRROR = (-1.0, 1.0, 1.0)  # x right, y down, z away
STEPS = 18_000  # counts of angles: 0.01 degrees each


@dataclass(frozen=True, kw_only=True)
class NormalsSettings:
    """The head, what is done to pictures and how they are read."""

    head: Literal["linear", "light"] = "linear"
    width: int = 64  # channels of the light head
    views: ViewSettings = field(default_factory=ViewSettings)
    read_out: ReadOut = field(default_factory=ReadOut)

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise CapwrightError(f"normals head {self.head!r}: allowed are {', '.join(HEADS)}")
        if self.views.strip:
            raise CapwrightError(
                f"CutDepth with probability {self.views.strip} needs depths: set views.strip=0"
            )


class LastMap(nn.Module):
    """A head of one map that takes the last of several."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """What the head makes of the last map, at `size` = (H, W)."""
        out: Tensor = self.head(maps[-1], size)
        return out


def build(backbone: Backbone, settings: NormalsSettings) -> PixelModel:
    """The encoder with a fresh head."""
    if settings.head == "linear":
        return PixelModel(backbone, None, LinearHead(backbone.channels, 3))
    light = LightHead(backbone.channels[-1], 3, hidden=settings.width)
    return PixelModel(backbone, None, LastMap(light))


def cosine_loss(answers_B3HW: Tensor, true_B3HW: Tensor) -> Tensor:
    """Mean of 1 - cos over pixels whose true normal is not 0; 0, with a gradient of 0, without."""
    known_BHW = (true_B3HW != 0).any(dim=1)
    if not known_BHW.any():
        return answers_B3HW.sum() * 0.0
    cos_BHW = F.cosine_similarity(answers_B3HW, true_B3HW, dim=1, eps=1e-6)
    return (1 - cos_BHW[known_BHW]).mean()


def _normals_3HW(item: NormalsItem) -> NDArray[np.float32]:
    return item.normals_3HW


QUANTITY = Quantity(name="normals", label=_normals_3HW, loss=cosine_loss, mirror=MIRROR)


def measure(
    model: PixelModel, pictures: NormalsSet, numbers: Sequence[int], settings: NormalsSettings
) -> tuple[dict[str, float | None], Outcomes]:
    """Metrics over the pictures `numbers`, and what each contributed to them (but the median).

    Raises CapwrightError where no picture has a known normal.
    """
    keys: list[str] = []
    sums: list[list[float]] = []  # pixels, degrees, and pixels within each bound, of each picture
    counts = np.zeros(STEPS, np.int64)
    told = answers(model, pictures, numbers, QUANTITY, settings.views, settings.read_out)
    for key, pred_3HW, true_3HW in told:
        degrees = angular_errors(pred_3HW[None], true_3HW[None])
        within = [float((degrees < bound).sum()) for bound in NORMALS_BOUNDS]
        keys.append(key)
        sums.append([float(len(degrees)), float(degrees.sum()), *within])
        counts += np.histogram(degrees, bins=STEPS, range=(0, 180))[0]
    if not counts.sum():
        raise CapwrightError(
            f"none of the {len(keys)} test pictures of {pictures.name} has a known normal: check "
            "the folder with `capwright data check`"
        )
    table = np.array(sums)
    names = ("mean_degrees", *(f"within_{bound:g}" for bound in NORMALS_BOUNDS))
    outcomes = {
        name: Outcome(part=part, whole=table[:, 0])
        for name, part in zip(names, table[:, 1:].T, strict=True)
    }
    total = table.sum(axis=0)
    metrics: dict[str, float | None] = {
        name: float(part / total[0]) for name, part in zip(names, total[1:], strict=True)
    }
    metrics["median_degrees"] = median_of_counts(counts, 180 / STEPS)
    return metrics, Outcomes(keys=tuple(keys), metrics=outcomes)


def median_of_counts(counts: NDArray[np.int64], step: float) -> float:
    """The median of values counted in steps from 0, as if each step's were spread evenly."""
    before = np.cumsum(counts)
    half = before[-1] / 2
    at = int(np.searchsorted(before, half))
    into = (half - (before[at] - counts[at])) / counts[at]
    return float((at + into) * step)
