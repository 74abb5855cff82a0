"""Words for the classes of data sets, and SCLIP's settings for each: what `sclip/v1` adds.

The names of a benchmark's classes are seldom the words of captions: "boat" stands for ships, and
"background" for nothing at all. Names for a class are alternatives: a pixel takes the best. Which
classes get other names, and the constants, follow SCLIP (arXiv 2312.01597); the words are ours.
Reads and writes nothing.
"""

from collections.abc import Mapping
from typing import Any

from capwright.datasets.sets import SegmentationSet
from capwright.dense.words import BACKGROUND, Vocabulary

PERSON = (
    "person", "person in shirt", "person in jeans", "person in dress", "person in jacket",
    "person in coat", "person in sportswear",
)  # fmt: skip
SCREEN = ("tv monitor", "television", "computer monitor", "screen", "display")
WORDS: Mapping[str, tuple[str, ...]] = {
    "person": PERSON,
    "boat": ("ship", "boat"),
    "aeroplane": ("aeroplane", "airplane"),
    "motorbike": ("motorbike", "motorcycle"),
    "diningtable": ("table",),
    "dining table": ("table",),
    "pottedplant": ("potted plant",),
    "tvmonitor": SCREEN,
    "tv": SCREEN,
    "sofa": ("sofa", "couch"),
}
WITH_BACKGROUND = ("pascal-voc21", "coco-object", "scenes")  # whose background is put in words
SETTINGS: Mapping[str, Mapping[str, float]] = {
    "pascal-voc21": {
        "logit_scale": 65.0,
        "area_threshold": 0.1,
        "probability_threshold": 0.1,
    },
    "pascal-context60": {"logit_scale": 50.0, "probability_threshold": 0.1},
    "coco-object": {"logit_scale": 50.0, "probability_threshold": 0.1},
}
SHORT_SIDE: Mapping[str, float] = {"coco-stuff": 448 / 224, "cityscapes": 560 / 224}  # of windows


def plain_words(pictures: SegmentationSet) -> Vocabulary:
    """The classes' own names."""
    return Vocabulary(classes=tuple((name,) for name in pictures.classes))


def engineered_words(
    pictures: SegmentationSet, names: Mapping[int, list[str]] | None = None
) -> Vocabulary:
    """Names for each class; `names` are those of the objects, by class, where they are known."""
    found = [
        tuple(names[number]) if names and number in names else WORDS.get(name, (name,))
        for number, name in enumerate(pictures.classes)
    ]
    if pictures.has_background and pictures.name in WITH_BACKGROUND:
        found[0] = BACKGROUND
    return Vocabulary(classes=tuple(found))


def engineered_settings(name: str, window: int) -> dict[str, Any]:
    """Changes of the inference for a set, with windows of `window` pixels."""
    changes: dict[str, Any] = dict(SETTINGS.get(name, {}))
    if name in SHORT_SIDE:
        changes["short_side"] = round(SHORT_SIDE[name] * window)
    return changes
