"""Self-training: unseen classes are found in the training pictures, and learned from there.

A pixel of a training picture that is not labelled, but answered with an unseen class, takes that
class as its label; all other unlabelled pixels stay as they are. The proposals then go on learning
with the masks of all classes.

Writes FOLDER/NUMBER.png, class numbers at the stored size, each complete or absent, so that a run
that was cut off goes on.

Shapes: C classes, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from capwright.adapt.zsseg.inference import Segmenter, answers
from capwright.adapt.zsseg.splits import Split
from capwright.core.progress import Progress
from capwright.datasets.label_pictures import read_label, write_label
from capwright.datasets.sets import IGNORE, LabelledSet, SegmentationItem


def pseudo_labels(
    seg_HW: NDArray[np.uint8], answer_HW: NDArray[np.uint8], split: Split
) -> NDArray[np.uint8]:
    """Labels of seen classes as they are; elsewhere the answer where it is an unseen class."""
    labelled_HW = np.isin(seg_HW, split.seen)
    found_HW = np.where(np.isin(answer_HW, split.unseen), answer_HW, IGNORE)
    merged_HW: NDArray[np.uint8] = np.where(labelled_HW, seg_HW, found_HW).astype(np.uint8)
    return merged_HW


def write_pseudo_labels(
    segmenter: Segmenter,
    pictures: LabelledSet[SegmentationItem],
    numbers: Sequence[int],
    split: Split,
    exponent_C: Tensor,
    folder: Path,
) -> None:
    """Answer the training pictures that have no pseudo-labels yet, and write them."""
    todo = [number for number in numbers if not label_file(folder, number).exists()]
    found = answers(segmenter, pictures, todo, {"": exponent_C})
    with Progress("pseudo-labels", len(todo), "pictures") as progress:
        for number, (item, labels) in zip(todo, found, strict=True):
            write_label(label_file(folder, number), pseudo_labels(item.seg_HW, labels[""], split))
            progress.advance()


def label_file(folder: Path, number: int) -> Path:
    """Where the labels of picture `number` of the set lie."""
    return folder / f"{number:08d}.png"


@dataclass(frozen=True)
class _Reader:
    """Items with pseudo-labels in place of their own."""

    pictures: LabelledSet[SegmentationItem]
    folder: Path

    def __call__(self, index: int) -> SegmentationItem:
        return replace(self.pictures[index], seg_HW=read_label(label_file(self.folder, index)))


def with_pseudo_labels(
    pictures: LabelledSet[SegmentationItem], folder: Path
) -> LabelledSet[SegmentationItem]:
    """The set with the labels in `folder`; only pictures that have some may be read."""
    return replace(pictures, read=_Reader(pictures, folder))
