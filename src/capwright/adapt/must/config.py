"""What a run of MUST is told; the defaults are those of ImageNet with ViT-B/16 in the paper's code.

Durations are in passes over the unlabelled pictures (`epochs`) and in steps (`momentum_steps`).
"""

import math
from dataclasses import dataclass
from pathlib import Path

from capwright.core.errors import CapwrightError
from capwright.pretrain.precision import Precision

REFERENCE_BATCH = 256  # that learning rates are given for
MANY_CLASSES = 512  # from so many on, the mean prediction remembers earlier batches


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of the four losses; one with the weight 0 is not computed."""

    self_training: float = 1.0
    fairness: float = 1.0
    masked_image: float = 1.0
    alignment: float = 0.2

    def __post_init__(self) -> None:
        values = (self.self_training, self.fairness, self.masked_image, self.alignment)
        if any(not math.isfinite(value) or value < 0 for value in values) or not any(values):
            raise CapwrightError(
                f"weights {values} of self_training, fairness, masked_image and alignment: none "
                "may be below 0, and one must be above"
            )

    @property
    def masks(self) -> bool:
        """Whether some loss needs hidden patches."""
        return self.masked_image > 0 or self.alignment > 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which model, which pictures, which losses, how long."""

    checkpoint: str | Path = "ViT-B-16/openai"  # whatever `models.towers.load` takes
    data: Path = Path("data/imagenet")  # folder of the data set
    out: Path = Path("runs/must")
    dataset: str = "imagenet"  # a set for classification, of `capwright data list`
    train_split: str = "train"  # its labels are never read
    test_split: str = "val"
    templates: tuple[str, ...] = ()  # with {c} or {}; () takes those of the set, or open_clip's 80
    scale: float | None = None  # of cosines; None is the checkpoint's own, 100 in CLIP's

    weights: Weights = Weights()
    threshold: float = 0.7  # a pseudo-label counts above this confidence of the teacher
    running_mean: float | None = None  # share of earlier batches; None: 0.5 from 512 classes on
    mask_patch: int = 32  # pixels a side of what is hidden together
    mask_ratio: float = 0.3  # share of these that is hidden

    crop_area: tuple[float, float] = (0.3, 1.0)  # of the strong view
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    operations: int = 2  # of RandAugment, each with the probability 1/2
    level: float = 0.9  # their mean strength; magnitude 9 of 10

    epochs: int = 30
    batch: int = 1024  # pictures of a step, over all processes
    learning_rate: float = 2e-5  # of the top, for a batch of 256; it grows with the batch
    least_rate: float = 1e-6  # at the end
    layer_decay: float = 0.65
    weight_decay: float = 0.05
    momentum: tuple[float, float] = (0.999, 0.9998)  # of the teacher, at the start and later
    momentum_steps: int = 2000  # over which it rises
    seed: int = 0
    test_every: int = 1  # epochs between two measurements

    image_size: int | None = None  # pixels a side; None is the tower's own
    precision: Precision = "auto"
    device: str = "auto"
    workers: int = 0  # processes that read pictures; 0 reads in this one
    save_every: int = 500  # steps between two states on the disk

    def __post_init__(self) -> None:
        self._check_counts()
        low, high = self.crop_area
        if not 0 <= self.threshold < 1 or not 0 <= self.level <= 1 or not 0 < low <= high <= 1:
            raise CapwrightError(
                f"threshold={self.threshold}, level={self.level}, crop_area={self.crop_area}: "
                "threshold and level are shares from 0 to 1 (threshold below 1), areas are above 0"
            )
        if not 0 < self.mask_ratio < 1:
            raise CapwrightError(
                f"mask_ratio is {self.mask_ratio}: a share between 0 and 1; to hide nothing set "
                "weights.masked_image=0 and weights.alignment=0"
            )
        first, last = self.momentum
        if not 0 <= first <= last < 1:
            raise CapwrightError(
                f"momentum is {self.momentum}: two numbers from 0 to below 1, the second not "
                "smaller, such as [0.999, 0.9998]"
            )
        if self.running_mean is not None and not 0 <= self.running_mean < 1:
            raise CapwrightError(
                f"running_mean is {self.running_mean}: a share from 0 to below 1, or null"
            )
        if self.precision == "fp16":
            raise CapwrightError("precision fp16 needs a scaled loss, which MUST lacks: take bf16")

    def _check_counts(self) -> None:
        for name in ("epochs", "batch", "mask_patch", "test_every", "save_every"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("operations", "momentum_steps", "workers", "weight_decay", "least_rate"):
            if getattr(self, name) < 0:
                raise CapwrightError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if self.learning_rate <= 0 or not 0 < self.layer_decay <= 1:
            raise CapwrightError(
                f"learning_rate={self.learning_rate}, layer_decay={self.layer_decay}: the first "
                "is above 0, the second above 0 and at most 1"
            )

    def teacher_momentum(self, step: int) -> float:
        """After step `step`, counted from 0: it rises in a line and then stays."""
        first, last = self.momentum
        if self.momentum_steps == 0:
            return last
        return first + (last - first) * min(1.0, step / self.momentum_steps)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of the top at a step: a cosine without warm-up, scaled by the batch."""
        top = self.learning_rate * self.batch / REFERENCE_BATCH
        least = min(self.least_rate, top)
        return least + (top - least) * 0.5 * (1 + math.cos(math.pi * step / steps))

    def kept(self, classes: int) -> float:
        """Share of earlier batches in the mean prediction."""
        if self.running_mean is not None:
            return self.running_mean
        return 0.5 if classes >= MANY_CLASSES else 0.0
