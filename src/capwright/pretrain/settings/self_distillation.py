"""Dials of `objectives/self_distillation.py`.

SILC's paper was at hand in part only. Defaults marked (ours) are not claimed to be the paper's.
"""

from dataclasses import dataclass

from capwright.core.errors import CapwrightError


@dataclass(frozen=True, kw_only=True)
class SelfDistillationSettings:
    """The teacher, the views, the head, and when to call it a collapse."""

    momentum: float = 0.966  # of the teacher, fixed; suits long runs with large batches (ours)
    global_views: int = 2  # what the teacher sees; 1 in SigLIP 2's variant
    local_views: int = 8  # what the student sees
    local_area: tuple[float, float] = (0.05, 0.4)  # share of the picture that a local view keeps
    local_size: int | None = None  # pixels a side; None is 3/8 of image_size: 96 at 256 (ours)
    prototypes: int = 8192  # 65,536 for web-scale runs (ours)
    hidden_width: int = 2048  # of the head's two hidden layers (ours)
    bottleneck: int = 256  # width of the unit vectors that meet the prototypes (ours)
    student_temperature: float = 0.1  # (ours)
    teacher_temperature: float = 0.04  # below the student's, or answers become uniform (ours)
    centre_momentum: float = 0.9  # of the mean teacher logits; 1 is no centring (ours)
    alarm_after_steps: int = 200  # of this objective: a new head is uniform at first
    alarm_one_prototype: float = 0.1  # nats: the batch-mean entropy below which all look alike
    alarm_uniform: float = 0.98  # share of log(prototypes): the entropy above which none is meant

    def __post_init__(self) -> None:
        for name in ("momentum", "centre_momentum", "alarm_uniform"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise CapwrightError(f"self_distillation.{name} is {value}: it must be from 0 to 1")
        for name in ("student_temperature", "teacher_temperature"):
            value = getattr(self, name)
            if not value > 0:
                raise CapwrightError(
                    f"self_distillation.{name} is {value}: it must be above 0, "
                    "and the teacher's below the student's is usual (0.04 and 0.1)"
                )
        for name in ("global_views", "local_views", "hidden_width", "bottleneck"):
            value = getattr(self, name)
            if value < 1:
                raise CapwrightError(f"self_distillation.{name} is {value}: it must be 1 or more")
        if self.prototypes < 2:
            raise CapwrightError(
                f"self_distillation.prototypes is {self.prototypes}: it must be 2 or more"
            )
        if self.local_size is not None and self.local_size < 1:
            raise CapwrightError(
                f"self_distillation.local_size is {self.local_size}: "
                "give pixels a side, or null for 3/8 of image_size"
            )
        low, high = self.local_area
        if not 0 < low <= high <= 1:
            raise CapwrightError(
                f"self_distillation.local_area is {self.local_area}: "
                "two shares with 0 < smallest <= largest <= 1"
            )
