"""ImageNet and anything in its form: one folder of pictures a class.

Reads SPLIT/CLASS/*.JPEG (jpg, png, webp likewise). Classes are the folders in the alphabet's order.
Their names are the lines of classnames.txt, one a class in that order, beside the splits; without
it the folders' own names, underscores as spaces. WordNet ids (n01440764) are no names: `check` says
so, since zero-shot with them measures nothing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from capwright.core.errors import CapwrightError
from capwright.datasets.label_pictures import first_folder, open_rgb
from capwright.datasets.sets import ClassificationItem, ClassificationSet

SPLITS = ("val", "train", "test")
NAMES_FILE = "classnames.txt"
_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class _Reader:
    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __call__(self, index: int) -> ClassificationItem:
        path = self.paths[index]
        key = f"{path.parent.name}/{path.stem}"
        return ClassificationItem(key=key, image=open_rgb(path), label=self.labels[index])


def load(folder: Path, split: str) -> ClassificationSet:
    """The set; the number of names must be that of the folders."""
    folders = _folders(folder, split)
    names = _names(folder, folders)
    pictures = [(path, label) for label, each in enumerate(folders) for path in _pictures(each)]
    if not pictures:
        raise CapwrightError(f"{folder}/{split} has no pictures in its folders of classes")
    labels = tuple(label for _, label in pictures)
    return ClassificationSet(
        name="imagenet",
        keys=tuple(f"{path.parent.name}/{path.stem}" for path, _ in pictures),
        read=_Reader(paths=tuple(path for path, _ in pictures), labels=labels),
        classes=names,
        labels=labels,
    )


def check(folder: Path, split: str | None = None) -> list[str]:
    """Problems with the folders, their names and the list of names."""
    split = split or SPLITS[0]
    try:
        folders = _folders(folder, split)
        names = _names(folder, folders)
    except CapwrightError as error:
        return [str(error)]
    problems = []
    wordnet = [name for name in names if _WORDNET.fullmatch(name)]
    if wordnet:
        problems.append(
            f"{len(wordnet)} classes are named by WordNet ids (e.g. {wordnet[0]}), which no text "
            f"encoder knows: put {NAMES_FILE} with one name a line, in the order of the sorted "
            f"folders, into {folder}"
        )
    empty = [each for each in folders if not _pictures(each)]
    if empty:
        problems.append(f"{len(empty)} classes have no pictures, first {empty[0]}")
    return problems


def _folders(folder: Path, split: str) -> list[Path]:
    root = first_folder(folder, split)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not folders:
        flat = len(_pictures(root))
        raise CapwrightError(
            f"{root} has no folders of classes but {flat} pictures: move each picture into the "
            "folder of its class (for ILSVRC2012_img_val.tar by its ground truth)"
        )
    return folders


def _names(folder: Path, folders: list[Path]) -> tuple[str, ...]:
    path = folder / NAMES_FILE
    if not path.is_file():
        return tuple(each.name.replace("_", " ") for each in folders)
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    if len(names) != len(folders):
        raise CapwrightError(
            f"{path} has {len(names)} names, but {folders[0].parent} has {len(folders)} folders of "
            "classes: one name a line is needed, in the order of the sorted folders"
        )
    return names


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
