"""Seen and unseen classes: published splits, labels without the unseen, and what is reported.

The generalised zero-shot setting: masks of the seen classes are learned from, pixels of the unseen
ones are not labelled while learning, and at the test every pixel chooses among all classes. Three
numbers are reported: mIoU over the seen classes, over the unseen, and their harmonic mean (hIoU).

COCO-Stuff has 156 seen and 15 unseen classes, VOC 15 and 5 (without background), as ZSSeg (arXiv
2112.14757) takes them; every fourth class of the scenes is unseen, and their background is seen.

Shapes: C classes, H and W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import IGNORE
from capwright.evaluate.dense_metrics import class_ious, segmentation_metrics

UNSEEN: Mapping[str, tuple[str, ...]] = {
    "coco-stuff": (
        "frisbee", "skateboard", "cardboard", "carrot", "scissors", "suitcase", "giraffe", "cow",
        "road", "wall-concrete", "tree", "grass", "river", "clouds", "playingfield",
    ),
    "pascal-voc20": ("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    "scenes": ("birds", "fruit", "rodents", "vehicles"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Split:
    """Numbers of the seen and of the unseen classes, in rising order."""

    classes: tuple[str, ...]
    seen: tuple[int, ...]
    unseen: tuple[int, ...]

    @property
    def is_seen_C(self) -> NDArray[np.bool_]:
        """True for a seen class."""
        return np.isin(np.arange(len(self.classes)), self.seen)


def split_of(dataset: str, classes: Sequence[str], unseen: Sequence[str] | None = None) -> Split:
    """The split with the classes `unseen`, by default the published ones of the data set.

    Raises CapwrightError for a name that is no class, and where no seen or no unseen class is left.
    """
    names = UNSEEN.get(dataset) if unseen is None else tuple(unseen)
    if names is None:
        raise CapwrightError(
            f"{dataset} has no published split into seen and unseen classes: set unseen to some of "
            f"its {len(classes)} classes"
        )
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise CapwrightError(
            f"the unseen class {unknown[0]!r} is none of {dataset}: its classes are "
            f"{', '.join(classes)}"
        )
    hidden = tuple(number for number, name in enumerate(classes) if name in names)
    seen = tuple(number for number in range(len(classes)) if number not in hidden)
    if not hidden or not seen:
        raise CapwrightError(
            f"of {len(classes)} classes {len(hidden)} are unseen: at least one must be seen and at "
            "least one unseen"
        )
    return Split(classes=tuple(classes), seen=seen, unseen=hidden)


def taught_labels(
    seg_HW: NDArray[np.uint8], taught: Sequence[int], classes: int
) -> NDArray[np.uint8]:
    """Labels 0, 1, ... for the classes `taught` in their order, IGNORE for all others.

    Raises CapwrightError for a label that is neither a class nor IGNORE.
    """
    wrong = seg_HW[(seg_HW >= classes) & (seg_HW != IGNORE)]
    if wrong.size:
        raise CapwrightError(
            f"a picture has the label {int(wrong.max())}, but there are {classes} classes: allowed "
            f"are 0 to {classes - 1}, and {IGNORE} where nothing is labelled"
        )
    table = np.full(256, IGNORE, np.uint8)
    table[list(taught)] = np.arange(len(taught))
    taught_HW: NDArray[np.uint8] = table[seg_HW]
    return taught_HW


def split_metrics(confusion_CC: NDArray[np.int64], split: Split) -> dict[str, float | None]:
    """`miou_seen`, `miou_unseen`, `hiou`, and `miou` over all classes, 0 to 1.

    A class that is neither labelled nor predicted does not count; without any class that counts a
    mean is None, and so is hIoU then.
    """
    ious = class_ious(confusion_CC)
    seen, unseen = (_mean([ious[c] for c in numbers]) for numbers in (split.seen, split.unseen))
    return {
        "miou_seen": seen,
        "miou_unseen": unseen,
        "hiou": harmonic_mean(seen, unseen),
        "miou": segmentation_metrics(confusion_CC)["miou"],
    }


def harmonic_mean(first: float | None, other: float | None) -> float | None:
    """2ab / (a + b); 0 where both are 0, None where one is None."""
    if first is None or other is None:
        return None
    return 2 * first * other / (first + other) if first + other else 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
