"""Pascal Context without its background, which is ignored: 59 classes; see pascal_context."""

from capwright.datasets import pascal_context
from capwright.datasets.label_pictures import LabelPictures, table_of
from capwright.datasets.sets import IGNORE

SPLITS = pascal_context.SPLITS
CLASSES = pascal_context.CLASSES
convert = pascal_context.convert
_SET = LabelPictures(
    name="pascal-context59",
    classes=CLASSES,
    has_background=False,
    table=table_of({0: IGNORE, **{n: n - 1 for n in range(1, 60)}, IGNORE: IGNORE}),
    wrong=pascal_context.WRONG_VALUE,
    find=pascal_context.find,
    splits=SPLITS,
    suspect=pascal_context.suspect,
)
load, check = _SET.load, _SET.check
