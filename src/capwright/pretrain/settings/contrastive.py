"""Dials of `objectives/contrastive.py`."""

from dataclasses import dataclass
from typing import Literal

from capwright.core.errors import CapwrightError

FORMS = ("softmax", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings:
    """Which form of the loss."""

    form: Literal["softmax", "sigmoid"] = "softmax"  # CLIP's InfoNCE, or SigLIP's
    sigmoid_scale: float = 10.0  # first logit scale of the sigmoid form; CLIP's is 1 / 0.07
    sigmoid_bias: float = -10.0  # first bias of the sigmoid form

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise CapwrightError(f"contrastive.form is {self.form!r}: softmax or sigmoid")
        if not self.sigmoid_scale > 0:
            raise CapwrightError(
                f"contrastive.sigmoid_scale is {self.sigmoid_scale}: above 0, 10 is usual"
            )
