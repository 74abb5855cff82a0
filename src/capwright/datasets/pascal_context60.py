"""Pascal Context with its background as class 0: 60 classes. Files as in pascal_context."""

from capwright.datasets import pascal_context
from capwright.datasets.label_pictures import LabelPictures, table_of
from capwright.datasets.sets import IGNORE

SPLITS = pascal_context.SPLITS
CLASSES = ("background", *pascal_context.CLASSES)
convert = pascal_context.convert
_SET = LabelPictures(
    name="pascal-context60",
    classes=CLASSES,
    has_background=True,
    table=table_of({**{number: number for number in range(60)}, IGNORE: IGNORE}),
    wrong=pascal_context.WRONG_VALUE,
    find=pascal_context.find,
    splits=SPLITS,
    suspect=pascal_context.suspect,
)
load, check = _SET.load, _SET.check
