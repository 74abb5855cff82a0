"""Dials of `objectives/non_contrastive.py`.

The weights of nCLIP's terms could not be read anywhere: the defaults here are ours.
"""

from dataclasses import dataclass

from capwright.core.errors import CapwrightError

# xCLIP is both objectives together; these weights come from a single note about the paper
XCLIP_OBJECTIVES: dict[str, float] = {"non_contrastive": 0.7, "contrastive": 0.3}
MOST_PROTOTYPES = 32_768


@dataclass(frozen=True, kw_only=True)
class NonContrastiveSettings:
    """The head, the weights of the terms, and when to call it a collapse."""

    prototypes: int | None = None  # None is batch_size, at most 32,768: see running_mean
    hidden_width: int = 1024  # of the two heads (ours)
    sharpness: float = 0.5  # weight of the mean entropy of one prediction (ours)
    smoothness: float = 2.0  # weight of the entropy of the mean prediction; above 1 + sharpness, or
    # predictions that are alike at first fall on one prototype together (ours)
    running_mean: float = 0.0  # what the mean prediction keeps of earlier batches: above 0 (0.5)
    # where prototypes outnumber the batch, which alone cannot use them all
    alarm_after_steps: int = 200  # new heads are uniform at first
    alarm_few: float = (
        0.25  # share of log(prototypes): entropy of the mean prediction below which …
    )
    alarm_uniform: float = 0.98  # … and mean entropy of a prediction above which it is a collapse

    def __post_init__(self) -> None:
        if self.prototypes is not None and self.prototypes < 2:
            raise CapwrightError(
                f"non_contrastive.prototypes is {self.prototypes}: "
                "it must be 2 or more, or null for as many as the batch has samples"
            )
        if self.hidden_width < 1:
            raise CapwrightError(
                f"non_contrastive.hidden_width is {self.hidden_width}: it must be 1 or more"
            )
        for name in ("sharpness", "smoothness"):
            value = getattr(self, name)
            if not value >= 0:
                raise CapwrightError(
                    f"non_contrastive.{name} is {value}: a weight of 0 or more "
                    "(without smoothness all predictions become the same)"
                )
        if not 0 <= self.running_mean < 1:
            raise CapwrightError(
                f"non_contrastive.running_mean is {self.running_mean}: "
                "a share from 0 (this batch alone) to below 1, 0.5 is usual"
            )
        for name in ("alarm_few", "alarm_uniform"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise CapwrightError(
                    f"non_contrastive.{name} is {value}: a share of log(prototypes) from 0 to 1"
                )
