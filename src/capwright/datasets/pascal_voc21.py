"""Pascal VOC 2012 with its background as class 0: 21 classes. Files as in pascal_voc."""

from capwright.datasets import pascal_voc
from capwright.datasets.label_pictures import LabelPictures, table_of
from capwright.datasets.sets import IGNORE

SPLITS = pascal_voc.SPLITS
CLASSES = ("background", *pascal_voc.CLASSES)
_SET = LabelPictures(
    name="pascal-voc21",
    classes=CLASSES,
    has_background=True,
    table=table_of({**{number: number for number in range(21)}, IGNORE: IGNORE}),
    wrong=pascal_voc.WRONG_VALUE,
    find=pascal_voc.find,
    splits=SPLITS,
)
load, check = _SET.load, _SET.check
