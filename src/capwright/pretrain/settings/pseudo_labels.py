"""Dials of `objectives/pseudo_labels.py`."""

import math
from dataclasses import dataclass
from typing import Literal

from capwright.core.errors import CapwrightError

TASKS = ("segmentation", "depth", "normals")


@dataclass(frozen=True, kw_only=True)
class PseudoLabelsSettings:
    """Which expert labels are learned, and by which heads.

    The weights are ours: the paper's are in an appendix that we have not seen.
    """

    stage: str = "experts"  # the labels are in WORK/captions/STAGE, by `capwright experts`
    segmentation: float = 1.0  # weight of the cross-entropy; 0 leaves the task out
    depth: float = 1.0
    normals: float = 1.0
    hidden: int = 128  # channels of a head
    label_size: int = 32  # side in pixels at which labels and predictions are compared
    scale_free: float = 0.5  # how much of an error that scales a whole view's metres is forgiven
    normals_loss: Literal["cosine", "angular"] = "cosine"  # 1 - cos of the angle, or the angle

    def __post_init__(self) -> None:
        for task in TASKS:
            if not 0 <= self.weight(task) < math.inf:
                raise CapwrightError(
                    f"pseudo_labels.{task} is {self.weight(task)}: a weight of 0 or more, "
                    "1 if nothing speaks against it"
                )
        for name in ("hidden", "label_size"):
            if getattr(self, name) < 1:
                raise CapwrightError(
                    f"pseudo_labels.{name} is {getattr(self, name)}: it must be 1 or more"
                )
        if not 0 <= self.scale_free <= 1:
            raise CapwrightError(
                f"pseudo_labels.scale_free is {self.scale_free}: a share from 0 (metres count) "
                "to 1 (only ratios within a view count)"
            )
        if self.normals_loss not in ("cosine", "angular"):
            raise CapwrightError(
                f"pseudo_labels.normals_loss is {self.normals_loss!r}: cosine or angular"
            )

    def weight(self, task: str) -> float:
        """The weight of a task's loss."""
        return float(getattr(self, task))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks with a weight; raises CapwrightError where there is none."""
        tasks = tuple(task for task in TASKS if self.weight(task))
        if not tasks:
            raise CapwrightError(
                "pseudo_labels has the weight 0 for segmentation, depth and normals: give one of "
                "them a weight, or leave the objective out"
            )
        return tasks
