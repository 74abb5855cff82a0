"""The settings of MUST (arXiv 2206.02967) for each data set, as its repository has them.

Read in the repository's train_configs.json; the recipes must_imagenet, must_sun397 and so on are
rows of this table. Lengths are epochs, the mask is in pixels, the momentum is the teacher's at the
start and the steps over which it rises to 0.9998. The paper's numbers beside each row are CLIP's
and MUST's accuracy in percent (of classes on average for Pets and Caltech101), the best checkpoint
as measured on the test pictures: compare `best` with them, and believe `last`.

Data: DATA/NAME/{train,test}/CLASS/*.jpg with classnames.txt beside (`val` for ImageNet), as
datasets/imagenet.py reads. The sets are not downloaded. Hardware there: 16 A100, batch 1,024; with
fewer set `batch` lower, and `running_mean=0.5` so that the fairness loss sees more than one batch.
"""

from dataclasses import dataclass
from pathlib import Path

from capwright.adapt.must import Config, Weights
from capwright.core.errors import CapwrightError

DATA = Path("data")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What differs between sets."""

    mask: tuple[int, float]  # pixels a side, share
    alignment: float
    fairness: float
    threshold: float
    learning_rate: float
    epochs: int
    momentum: tuple[float, int]  # at the start, steps until the end
    model: str = "ViT-B-16/openai"
    reported: tuple[float, float] | None = None  # CLIP, MUST; None: not in our sheet
    test_split: str = "test"
    folder: str = ""  # where it is not the row's name


_SMALL = Row(
    mask=(32, 0.1), alignment=0.2, fairness=1, threshold=0.7, learning_rate=1e-5, epochs=60,
    momentum=(0.99, 100),
)  # fmt: skip
TABLE: dict[str, Row] = {
    "imagenet": Row(
        mask=(32, 0.3), alignment=0.2, fairness=1, threshold=0.7, learning_rate=2e-5, epochs=30,
        momentum=(0.999, 2000), reported=(68.3, 77.7), test_split="val",
    ),
    "imagenet_l14": Row(
        mask=(56, 0.3), alignment=0.5, fairness=1, threshold=0.5, learning_rate=4e-5, epochs=20,
        momentum=(0.999, 2000), model="ViT-L-14/openai", reported=(75.5, 82.1), test_split="val",
        folder="imagenet",
    ),
    "sun397": Row(
        mask=(32, 0.1), alignment=1, fairness=0.2, threshold=0.4, learning_rate=1e-4, epochs=20,
        momentum=(0.99, 500), reported=(64.4, 71.8),
    ),
    "food101": Row(
        mask=(32, 0.1), alignment=0.1, fairness=1, threshold=0.7, learning_rate=2e-5, epochs=40,
        momentum=(0.999, 2000), reported=(88.7, 92.7),
    ),
    "gtsrb": Row(
        mask=(32, 0.5), alignment=0.5, fairness=1, threshold=0.3, learning_rate=2e-5, epochs=20,
        momentum=(0.99, 500), reported=(43.4, 65.5),
    ),
    "dtd": Row(
        mask=(32, 0.1), alignment=0.2, fairness=1, threshold=0.4, learning_rate=2e-5, epochs=60,
        momentum=(0.99, 100), reported=(44.7, 54.1),
    ),
    "ucf101": Row(
        mask=(16, 0.1), alignment=0.5, fairness=1, threshold=0.5, learning_rate=1e-5, epochs=60,
        momentum=(0.99, 500), reported=(68.8, 81.1),
    ),
    "pets": _SMALL,
    "caltech101": _SMALL,
}  # fmt: skip


def config_of(name: str) -> Config:
    """The plan of a row; raises CapwrightError for a set that the table lacks."""
    if name not in TABLE:
        raise CapwrightError(f"no row {name!r} in the table of MUST: known are {', '.join(TABLE)}")
    row = TABLE[name]
    return Config(
        checkpoint=row.model,
        data=DATA / (row.folder or name),
        out=Path("runs") / f"must_{name}",
        test_split=row.test_split,
        weights=Weights(fairness=row.fairness, alignment=row.alignment),
        threshold=row.threshold,
        mask_patch=row.mask[0],
        mask_ratio=row.mask[1],
        epochs=row.epochs,
        learning_rate=row.learning_rate,
        momentum=(row.momentum[0], 0.9998),
        momentum_steps=row.momentum[1],
        precision="bf16",
        workers=8,
    )
