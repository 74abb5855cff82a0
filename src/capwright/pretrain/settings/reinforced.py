"""Dials of `objectives/reinforced.py`."""

from dataclasses import dataclass

from capwright.core.errors import CapwrightError


@dataclass(frozen=True, kw_only=True)
class ReinforcedSettings:
    """How much of the loss is distilled, from which stored teachers."""

    stage: str = "reinforce"  # WORK/captions/STAGE with the teachers' knowledge
    distillation: float = 0.75  # lambda: the rest is CLIP's loss; MobileCLIP-B 0.75, S0 to S2 1
    # logit scale of each teacher, or one for all: 100 in MobileCLIP, 70 and 60 in MobileCLIP2
    teacher_scales: tuple[float, ...] = (100.0,)

    def __post_init__(self) -> None:
        if not self.stage:
            raise CapwrightError(
                "reinforced.stage is empty: name the stage that `capwright reinforce` wrote, "
                "reinforce unless you moved it"
            )
        if not 0 <= self.distillation <= 1:
            raise CapwrightError(
                f"reinforced.distillation is {self.distillation}: a share of the loss from 0 to 1, "
                "0.75 for MobileCLIP-B and 1 for S0 to S2"
            )
        if not self.teacher_scales or not all(scale > 0 for scale in self.teacher_scales):
            raise CapwrightError(
                f"reinforced.teacher_scales is {list(self.teacher_scales)}: give one logit scale "
                "above 0 for all teachers, or one for each, 100 in MobileCLIP"
            )
