"""Pascal VOC 2012 without its background, which is ignored: 20 classes. Files as in pascal_voc."""

from capwright.datasets import pascal_voc
from capwright.datasets.label_pictures import LabelPictures, table_of
from capwright.datasets.sets import IGNORE

SPLITS = pascal_voc.SPLITS
CLASSES = pascal_voc.CLASSES
_SET = LabelPictures(
    name="pascal-voc20",
    classes=CLASSES,
    has_background=False,
    table=table_of({0: IGNORE, **{n: n - 1 for n in range(1, 21)}, IGNORE: IGNORE}),
    wrong=pascal_voc.WRONG_VALUE,
    find=pascal_voc.find,
    splits=SPLITS,
)
load, check = _SET.load, _SET.check
