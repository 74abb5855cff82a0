"""COCO's masks → pixels: polygons, plain and compressed run lengths.

Run lengths go down the columns, the first run is of pixels outside. The compressed form is a text:
each number is cut into groups of 5 bits, lowest first, a sixth bit says that another group follows,
48 is added to get a letter, and from the fourth number on it is the difference to the number two
places before. Polygons are filled by pycocotools, whose rounding at the border is COCO's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from capwright.core.errors import CapwrightError


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels [height, width] of a `segmentation` in any of COCO's three forms."""
    runs = _polygon_runs(segmentation, height, width)
    if runs is None:
        return np.zeros((height, width), np.bool_)
    if tuple(runs["size"]) != (height, width):
        raise CapwrightError(
            f"a mask is {runs['size'][1]} × {runs['size'][0]}, but its picture {width} × {height}: "
            "the annotations belong to other pictures"
        )
    counts = runs["counts"] if isinstance(runs["counts"], list) else _uncompressed(runs["counts"])
    inside = np.arange(len(counts)) % 2 == 1
    pixels: NDArray[np.bool_] = np.repeat(inside, counts)
    if pixels.size != height * width:
        raise CapwrightError(
            f"a mask's runs cover {pixels.size} pixels, but its picture has {height * width}: "
            "the annotations are damaged, fetch them again"
        )
    return pixels.reshape(width, height).T


def _polygon_runs(segmentation: Any, height: int, width: int) -> Any:
    """Run lengths of polygons, None where they enclose nothing; run lengths as they are."""
    if not isinstance(segmentation, list):
        return segmentation
    try:
        from pycocotools import mask as coco_mask
    except ImportError:
        raise CapwrightError(
            "COCO's polygons need pycocotools, which is not installed: pip install pycocotools"
        ) from None
    usable = [polygon for polygon in segmentation if len(polygon) >= 6]
    return coco_mask.merge(coco_mask.frPyObjects(usable, height, width)) if usable else None


def _uncompressed(text: str | bytes) -> list[int]:
    """The numbers in compressed run lengths."""
    letters = text.encode() if isinstance(text, str) else text
    counts: list[int] = []
    value = shift = 0
    for letter in letters:
        group = letter - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            if group & 0x10:
                value -= 1 << shift  # a negative difference
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
