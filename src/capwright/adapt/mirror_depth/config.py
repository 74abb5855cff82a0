"""What a run of mirror depth is told.

The length of the mirror and its first values are the paper's (secondary source); schedule, loss
weight and decoder are config defaults of ours, since the paper's were not at hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.evaluate.dense_metrics import Crop
from capwright.evaluate.transfer.depth import DepthSettings
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings
from capwright.pretrain.precision import Precision

MIRROR, CONSTANT, PROMPTS, DECODER = "mirror", "constant", "prompts", "decoder"
DEPTHCLIP = "depthclip"
ARMS = (MIRROR, CONSTANT, PROMPTS, DECODER, DEPTHCLIP)
# DepthCLIP's words, its distances for NYUv2 in metres, its scale and its temperature
SENTENCES = tuple(
    f"This object is {word}"
    for word in (
        "giant", "extremely close", "close", "not in distance", "a little remote", "far", "unseen",
    )
)  # fmt: skip
BINS_M = (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)


@dataclass(frozen=True, kw_only=True)
class ZeroShotSettings:
    """DepthCLIP: softmax(scale * cosine / temperature) over sentences, each with its distance."""

    sentences: tuple[str, ...] = SENTENCES
    bins_m: tuple[float, ...] = BINS_M
    scale: float = 100.0
    temperature: float = 0.1
    method: str = "maskclip"
    """Of dense/training_free: what makes vectors of patches that can be compared with texts."""

    def __post_init__(self) -> None:
        if len(self.sentences) != len(self.bins_m) or len(self.bins_m) < 2:
            raise CapwrightError(
                f"{len(self.sentences)} sentences and {len(self.bins_m)} distances: each sentence "
                "has one distance, and at least two are needed"
            )
        if min(self.bins_m) <= 0 or self.temperature <= 0 or self.scale <= 0:
            raise CapwrightError(
                f"distances from {min(self.bins_m)} m, temperature {self.temperature}, scale "
                f"{self.scale}: all must be above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which CLIP, on which set, by which arms."""

    checkpoint: str | Path | None
    """Any open_clip model, as `capwright evaluate` takes it; None builds `model` untrained."""
    data: Path
    """Folder of the set that is learned from."""
    out: Path
    dataset: str = "nyuv2"
    """A set with depths, or scenes."""
    split: str = "train"
    """That is learned from; scenes have one alone."""
    test_data: Path | None = None
    """Folder of the set that is tested on; None is `data`."""
    test_split: str | None = None
    """None is the usual one to test on."""
    model: str | Mapping[str, Any] = "nano"
    arms: tuple[str, ...] = ARMS
    seeds: tuple[int, ...] = (0,)
    tokens: int = 64
    """Vectors of the mirror; start, mirror and end must fit into the text tower's context."""
    width: int = 64
    """Channels of the decoder."""
    prompts: tuple[str, ...] = SENTENCES
    """Sentences of the arm `prompts`; the mean of their unit vectors is its z."""
    zero_shot: ZeroShotSettings = field(default_factory=ZeroShotSettings)
    silog_weight: float = 0.85
    least_m: float | None = None
    """Depths that are learned and scored; None: the set's."""
    most_m: float | None = None
    crop: Crop | None = None
    """Where pictures are scored; None: the set's usual one."""
    views: ViewSettings = field(default_factory=ViewSettings)
    read_out: ReadOut = field(default_factory=ReadOut)
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=38_000, batch=16, learning_rate=1e-4, weight_decay=0.01, shape="cosine"
        )
    )
    train_pictures: int | None = None
    """First so many; None: all."""
    test_pictures: int | None = None
    precision: Precision = "auto"
    device: str = "auto"
    loader_workers: int = 0
    """Processes that read pictures; 0 reads in this one."""
    save_every: int = 1000
    """Steps between saved states."""

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms or not self.seeds:
            raise CapwrightError(
                f"arms {', '.join(self.arms)} and {len(self.seeds)} seeds: give at least one seed "
                f"and one of {', '.join(ARMS)}"
            )
        if min(self.tokens, self.width, len(self.prompts), self.save_every) < 1:
            raise CapwrightError(
                f"tokens={self.tokens}, width={self.width}, {len(self.prompts)} prompts, "
                f"save_every={self.save_every}: each must be at least 1"
            )
        if self.schedule.encoder_learning_rate:
            raise CapwrightError(
                f"encoder_learning_rate is {self.schedule.encoder_learning_rate}: both towers stay "
                "frozen here, so set schedule.encoder_learning_rate=0, or take capwright transfer "
                "depth, which fine-tunes"
            )

    @property
    def depth(self) -> DepthSettings:
        """Loss, views and scoring, as protocol transfer-depth/v1 takes them."""
        return DepthSettings(
            silog_weight=self.silog_weight, least_m=self.least_m, most_m=self.most_m,
            crop=self.crop, views=self.views, read_out=self.read_out,
        )  # fmt: skip

    def plan(self) -> dict[str, Any]:
        """What the numbers depend on; arms and seeds can be added to a folder."""
        found: dict[str, Any] = as_dict(self)
        for name in ("out", "arms", "seeds", "device", "loader_workers", "save_every"):
            del found[name]
        return found
