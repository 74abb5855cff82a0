"""The plan of a transfer: which encoder learns which task, from what, and how.

A recipe (`capwright.recipes.ade20k_upernet`, `scenes_segmentation` ...) gives one; the command line
puts the encoder, the folders and the fractions in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.evaluate.transfer.classification import ClassificationSettings
from capwright.evaluate.transfer.depth import DepthSettings
from capwright.evaluate.transfer.detection import DetectionSettings
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.normals import NormalsSettings
from capwright.evaluate.transfer.segmentation import SegmentationSettings
from capwright.pretrain.precision import Precision

SCRATCH = "scratch"  # in place of a checkpoint: fresh weights
Task = Literal["segmentation", "depth", "normals", "classification", "detection"]
TASKS: tuple[Task, ...] = (
    "segmentation", "depth", "normals", "classification", "detection",
)  # fmt: skip

# how a run goes, never what its numbers are; or what can be added to a folder
_NOT_OF_THE_PLAN = (
    "out", "fractions", "seeds", "workers", "save_every", "keep_weights", "device",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """One task, one set, one encoder; every fraction with every seed."""

    task: Task
    checkpoint: str = ""  # whatever `load_backbone` takes, or "scratch"
    dataset: str  # a name of `capwright data list`
    data: Path  # its folder
    train_split: str  # of the scenes: a folder in `data`
    test_splits: tuple[str, ...]  # as many as wanted; of the scenes: folders in `data`
    out: Path
    schedule: Schedule
    scratch_schedule: Schedule | None = None  # for fresh weights, which have nothing to keep
    fractions: tuple[float, ...] = (1.0,)  # of the training items
    seeds: tuple[int, ...] = (0,)
    train_samples: int | None = None  # first so many items; None: all
    test_samples: int | None = None
    model: str | Mapping[str, Any] = "nano"  # towers of "scratch"
    drop_path: float = 0.0  # stochastic depth of the encoder's last block
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    depth: DepthSettings = field(default_factory=DepthSettings)
    normals: NormalsSettings = field(default_factory=NormalsSettings)
    classification: ClassificationSettings = field(default_factory=ClassificationSettings)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    precision: Precision = "auto"  # of learning
    device: str = "auto"  # auto: a GPU where there is one
    workers: int = 0  # processes that read items while learning
    save_every: int = 1000  # steps between two states
    keep_weights: bool = False  # what was learned, as OUT/FRACTION/SEED/model.safetensors

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise CapwrightError(f"task {self.task!r}: allowed are {', '.join(TASKS)}")
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise CapwrightError(
                f"fractions {self.fractions}: give at least one, each above 0 and at most 1"
            )
        if not self.seeds or min(self.seeds) < 0 or not self.test_splits:
            raise CapwrightError(
                f"seeds {self.seeds} and test splits {self.test_splits}: give at least one of "
                "each, seeds from 0"
            )
        if self.save_every < 1:
            raise CapwrightError(f"save_every is {self.save_every} steps: give at least 1")

    @property
    def settings(self) -> Any:
        """Of the task."""
        return getattr(self, self.task)

    @property
    def method(self) -> str:
        """What learns."""
        found = getattr(self.settings, "head", "") or self.settings.method
        return str(found)

    @property
    def mode(self) -> str:
        """Whether the encoder learns: frozen or finetuned."""
        fixed = self.method == "knn" or (self.task, self.method) == ("classification", "linear")
        return "frozen" if fixed or not self.schedule_used.encoder_learning_rate else "finetuned"

    @property
    def schedule_used(self) -> Schedule:
        """The schedule that this encoder gets."""
        fresh = self.checkpoint == SCRATCH and self.scratch_schedule is not None
        return self.scratch_schedule if fresh else self.schedule  # type: ignore[return-value]

    def plan(self) -> dict[str, Any]:
        """What a folder is bound to; fractions and seeds can be added to it."""
        return {
            name: value
            for name, value in as_dict(self).items()
            if name not in _NOT_OF_THE_PLAN and (name not in TASKS or name == self.task)
        }

    def recipe(self) -> dict[str, Any]:
        """What is the same for every encoder."""
        left_out = ("checkpoint", "model", "data", "schedule", "scratch_schedule")
        plan = {name: value for name, value in self.plan().items() if name not in left_out}
        return {**plan, "schedule": as_dict(self.schedule_used)}
