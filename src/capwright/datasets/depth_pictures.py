"""Depth sets whose labels are 16-bit PNGs, read as metres: value / scale, 0 = unknown.

Shapes: H and W of the stored picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.datasets.label_pictures import open_rgb
from capwright.datasets.sets import DepthItem

Entry = tuple[str, Path, Path]  # key, picture, depth


@dataclass(frozen=True, kw_only=True)
class DepthReader:
    """Item `index` of a set."""

    entries: tuple[Entry, ...]
    scale: float  # stored units a metre

    def __call__(self, index: int) -> DepthItem:
        key, image, label = self.entries[index]
        picture, depth_HW = open_rgb(image), read_depth(label, self.scale)
        if depth_HW.shape != (picture.height, picture.width):
            raise CapwrightError(_sizes(label, depth_HW.shape, picture.size))
        return DepthItem(key=key, image=picture, depth_HW=depth_HW)


def read_depth(path: Path, scale: float) -> NDArray[np.float32]:
    """Metres [H, W] of a 16-bit PNG."""
    try:
        with Image.open(path) as picture:
            if not picture.mode.startswith("I"):
                raise CapwrightError(
                    f"{path} has the mode {picture.mode}: a depth picture has 16 bits a pixel; "
                    "8-bit ones are for looking at, fetch the raw ones"
                )
            return (np.array(picture) / scale).astype(np.float32)
    except OSError as error:
        raise CapwrightError(
            f"{path} is not a readable picture ({error}): fetch it again"
        ) from None


def check_depths(
    name: str, entries: Sequence[Entry], scale: float, plausible_m: tuple[float, float]
) -> list[str]:
    """Problems: files that are missing or unreadable, sizes, medians out of `plausible_m`."""
    lost = [path for _, *paths in entries for path in paths if not path.is_file()]
    if lost:
        return [f"{len(lost)} files are missing, first {lost[0]}"]
    medians: list[float] = []
    problems: list[str] = []
    with Progress(f"check {name}", len(entries), "depths") as progress:
        for _, image, label in entries:
            try:
                depth_HW = read_depth(label, scale)
                with Image.open(image) as picture:
                    size = picture.size
            except (CapwrightError, OSError) as error:
                return [str(error)]
            if depth_HW.shape != size[::-1] and not problems:
                problems.append(_sizes(label, depth_HW.shape, size))
            known = depth_HW[depth_HW > 0]
            if known.size == 0 and not problems:
                problems.append(f"{label} has no known depth")
            medians.append(float(np.median(known)) if known.size else np.nan)
            progress.advance()
    return problems + unit_problem(name, medians, scale, plausible_m)


def unit_problem(
    name: str, medians: Sequence[float], scale: float, plausible_m: tuple[float, float]
) -> list[str]:
    """A sentence where the usual depth is not plausible, which means another unit."""
    if np.isnan(medians).all():
        return []
    usual = float(np.nanmedian(medians))
    if plausible_m[0] <= usual <= plausible_m[1]:
        return []
    return [
        f"the usual depth is {usual:g} m with {scale:g} stored units a metre, but {name} shows "
        f"{plausible_m[0]:g} to {plausible_m[1]:g} m: the depths are in another unit (metres, "
        "millimetres, 1/256 m); write them anew in the set's own"
    ]


def _sizes(label: Path, shape: tuple[int, ...], size: tuple[int, int]) -> str:
    return (
        f"{label} is {shape[1]} × {shape[0]}, but its picture is {size[0]} × {size[1]}: depths "
        "must keep their picture's size"
    )
