"""Labelled data sets in their standard on-disk layout, one module each; `scenes` is made here.

`load(NAME, FOLDER)` finds the module by its name, dashes written as underscores. Each module has
`SPLITS` (the first is the usual one to evaluate on), `load(folder, split)` and `check(folder,
split)`, which gives one sentence a problem. Some have `convert(folder)`, which writes labels in
the form that `load` reads. Nothing is downloaded: docs/reference/datasets.md says where sets are.
"""

import difflib
import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import LabelledSet

NAMES = (
    "ade20k",
    "cityscapes",
    "coco-captions",
    "coco-instances",
    "coco-object",
    "coco-stuff",
    "flickr30k",
    "imagenet",
    "kitti",
    "nyuv2",
    "pascal-context59",
    "pascal-context60",
    "pascal-voc20",
    "pascal-voc21",
    "scenes",
    "webdataset",
)
_OTHER_MODULES = {"scenes": "scenes_sets"}  # `scenes` makes the scenes, `scenes_sets` reads them


class DatasetModule(Protocol):
    """What every module of a data set has."""

    SPLITS: tuple[str, ...]

    def load(self, folder: Path, split: str) -> LabelledSet[Any]:
        """The set; raises CapwrightError where the folder does not hold it."""

    def check(self, folder: Path, split: str | None = None) -> list[str]:
        """Problems, one sentence each; empty where all is good."""


def module_of(name: str) -> DatasetModule:
    """The module of the set called `name`; an unknown name is a CapwrightError."""
    name = name.replace("_", "-")
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise CapwrightError(f"no data set is called {name!r}: {hint}known are {', '.join(NAMES)}")
    module = _OTHER_MODULES.get(name, name.replace("-", "_"))
    return cast(DatasetModule, importlib.import_module(f"{__name__}.{module}"))


def load(name: str, folder: Path, split: str | None = None) -> LabelledSet[Any]:
    """The set called `name` in `folder`; without `split`, the usual one to evaluate on."""
    module = module_of(name)
    return module.load(Path(folder), split_of(name, module, split))


def split_of(name: str, module: DatasetModule, split: str | None) -> str:
    """`split`, or the usual one; one that the set does not have is a CapwrightError."""
    if split is None:
        return module.SPLITS[0]
    if split not in module.SPLITS:
        raise CapwrightError(
            f"{name} has no split {split!r}: allowed are {', '.join(module.SPLITS)}"
        )
    return split
