"""The words for the classes of a set: their own names, or better ones."""

from pathlib import Path
from typing import Literal

from capwright.datasets.labelled import load_dense
from capwright.datasets.sets import SegmentationSet
from capwright.dense.words import Vocabulary
from capwright.evaluate.class_words import engineered_words, plain_words
from capwright.evaluate.classification import class_prompts

SMALL = 8  # pixels of a scene of which only the names are read
SCENES = 1000  # at most, that names are read of


def vocabulary_of(
    words: Literal["plain", "engineered"], pictures: SegmentationSet, folder: Path
) -> Vocabulary:
    """Names by class; those of scenes come from their objects ("toucan" for birds)."""
    if words == "plain":
        return plain_words(pictures)
    names = None
    if pictures.name == "scenes":
        scenes = load_dense(folder, SMALL, limit=min(len(pictures), SCENES))
        names = class_prompts(scenes, "objects")
    return engineered_words(pictures, names)
