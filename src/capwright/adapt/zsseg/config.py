"""What a run of ZSSeg is made of; every number has a default of the paper's configuration files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from capwright.adapt.zsseg.inference import InferenceSettings
from capwright.adapt.zsseg.losses import LossWeights
from capwright.adapt.zsseg.prompts import PromptSettings
from capwright.adapt.zsseg.proposals import ProposalSettings
from capwright.adapt.zsseg.views import ViewSettings
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.dense.words import TEMPLATES
from capwright.evaluate.transfer.loop import Schedule
from capwright.pretrain.precision import Precision

ONE_STAGE, FIXED, LEARNED, SELF_TRAINED = "one_stage", "fixed", "learned", "self_trained"
ARMS = (ONE_STAGE, FIXED, LEARNED, SELF_TRAINED)
WEIGHTS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def _proposal_schedule() -> Schedule:
    return Schedule(
        steps=60_000, batch=32, learning_rate=1e-4, encoder_learning_rate=1e-5, weight_decay=1e-4,
        shape="poly", power=0.9, grad_clip=0.01,
    )  # fmt: skip


def _baseline_schedule() -> Schedule:
    return Schedule(
        steps=60_000, batch=32, learning_rate=1e-4, encoder_learning_rate=1e-5, weight_decay=1e-4,
        shape="poly", power=0.9, grad_clip=1.0,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which CLIP, on which set, by which arms."""

    checkpoint: str | Path | None
    """Any open_clip model, as `capwright evaluate` takes it; None builds `model` untrained."""
    data: Path
    """Folder of the set that is learned from."""
    out: Path
    dataset: str = "coco-stuff"
    split: str | None = None
    """That is learned from; None is the usual one to test on."""
    test_data: Path | None = None
    """Folder of the set that is tested on; None is `data`."""
    test_split: str | None = None
    model: str | Mapping[str, Any] = "nano"
    unseen: tuple[str, ...] | None = None
    """Classes that no label is shown of; None is the published split (splits.py)."""
    words: Literal["plain", "engineered"] = "plain"
    """The classes' own names, or those of evaluate/class_words.py."""
    templates: tuple[str, ...] = TEMPLATES
    """Of the fixed prompts."""
    arms: tuple[str, ...] = (ONE_STAGE, FIXED, LEARNED)
    """one_stage: the baseline; fixed: written prompts; learned: learned ones; self_trained."""
    seeds: tuple[int, ...] = (0,)
    train_pictures: int | None = None
    """First so many; None: all."""
    test_pictures: int | None = None
    validation: float = 0.05
    """Share of the pictures to learn from that only the ensemble weight is chosen on."""
    weights: tuple[float, ...] = WEIGHTS
    """Ensemble weights that are tried there."""
    weight: float = 0.8
    """The paper's, reported beside the chosen one; 0.7 on VOC."""
    prompts: PromptSettings = field(default_factory=PromptSettings)
    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    losses: LossWeights = field(default_factory=LossWeights)
    views: ViewSettings = field(default_factory=ViewSettings)
    schedule: Schedule = field(default_factory=_proposal_schedule)
    """Of the proposals; `encoder_learning_rate` is their backbone's."""
    baseline: Schedule = field(default_factory=_baseline_schedule)
    """Of the one-stage classifier; `encoder_learning_rate` is CLIP's."""
    self_training: Schedule = field(default_factory=_proposal_schedule)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    precision: Precision = "auto"
    device: str = "auto"
    loader_workers: int = 4
    """Processes that read pictures."""
    workers: int = 1
    """Arms that run at once, each in a process with a core of its own."""
    save_every: int = 1000
    """Steps between saved states."""

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms or not self.seeds:
            raise CapwrightError(
                f"arms {', '.join(self.arms)} and {len(self.seeds)} seeds: give at least one seed "
                f"and one of {', '.join(ARMS)}"
            )
        if not 0 < self.validation < 1 or not self.weights:
            raise CapwrightError(
                f"a validation share of {self.validation} and {len(self.weights)} weights to try: "
                "the share is above 0 and below 1, and one weight at least is needed"
            )
        if not all(0 <= weight <= 1 for weight in (*self.weights, self.weight)):
            raise CapwrightError(
                f"weight {self.weight} and weights {self.weights}: ensemble weights lie from 0 to 1"
            )
        if self.save_every < 1 or self.workers < 1:
            raise CapwrightError(
                f"save_every={self.save_every}, workers={self.workers}: each must be at least 1"
            )

    def plan(self) -> dict[str, Any]:
        """What the numbers depend on; arms and seeds can be added to a folder."""
        found: dict[str, Any] = as_dict(self)
        for name in ("out", "arms", "seeds", "device", "loader_workers", "workers", "save_every"):
            del found[name]
        return found
