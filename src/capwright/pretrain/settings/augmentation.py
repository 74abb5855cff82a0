"""Dials of `augmentation.py`: how pictures are cropped and mirrored."""

from dataclasses import dataclass

from capwright.core.errors import CapwrightError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Light augmentation of the pictures, drawn from (seed, sample, epoch)."""

    crop_area: tuple[float, float] = (0.6, 1.0)  # share of the picture's area that a crop keeps
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)  # width / height of the crop
    flip: bool = False  # captions say left and right, so mirroring would make them false

    def __post_init__(self) -> None:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise CapwrightError(
                f"augmentation.crop_area is {self.crop_area}: "
                "two shares with 0 < smallest <= largest <= 1"
            )
        low, high = self.crop_aspect
        if not 0 < low <= high:
            raise CapwrightError(
                f"augmentation.crop_aspect is {self.crop_aspect}: "
                "two ratios with 0 < smallest <= largest"
            )
