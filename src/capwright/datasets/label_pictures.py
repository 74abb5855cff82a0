"""Segmentation sets whose labels are pictures: pairing, reading, checking and converting them.

A module of such a set says where pictures and labels lie (`find`) and what each stored value means
(`table`: 256 entries, the class number, IGNORE, or WRONG where the value has no business there).
The same table serves `load` and `check`, so a label that `check` would report never becomes a
number: 0.07 mIoU from raw COCO-Stuff ids is what happens otherwise.

Shapes: H and W of the stored picture.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.datasets.sets import SegmentationItem, SegmentationSet

WRONG = -1
PICTURES = (".jpg", ".jpeg", ".png", ".JPEG", ".JPG")
Table = tuple[int, ...]
Found = tuple[Mapping[str, Path], Mapping[str, Path]]  # pictures and labels by key


def table_of(classes: Mapping[int, int]) -> Table:
    """256 entries from stored value to class; what is not in `classes` is WRONG."""
    return tuple(classes.get(value, WRONG) for value in range(256))


def files_in(folder: Path, suffixes: Sequence[str], ending: str = "") -> dict[str, Path]:
    """Files by their path below `folder` without `ending` and suffix; none where it is missing."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in suffixes and path.stem.endswith(ending) and path.name[0] != ".":
            name = path.relative_to(folder).with_suffix("").as_posix()
            found[name.removesuffix(ending) if ending else name] = path
    return found


def first_folder(root: Path, *candidates: str) -> Path:
    """The first of `candidates` below `root` that is a folder; none is a CapwrightError."""
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise CapwrightError(
        f"{root} has no folder {' or '.join(candidates)}: give the folder that holds it, "
        "laid out as docs/reference/datasets.md shows"
    )


def read_list(path: Path) -> list[str]:
    """The first word of every line; a missing file is a CapwrightError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise CapwrightError(f"{path}, the list of the split's pictures, is missing") from None
    return [line.split()[0] for line in lines if line.strip()]


def open_rgb(path: Path) -> Image.Image:
    """The picture in RGB, decoded; a broken one is a CapwrightError."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise CapwrightError(
            f"{path} is not a readable picture ({error}): fetch it again"
        ) from None


def read_label(path: Path) -> NDArray[np.uint8]:
    """Stored values [H, W] of an 8-bit label picture (grey or palette)."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise CapwrightError(
                    f"{path} has the mode {picture.mode}: a label picture has one 8-bit number a "
                    "pixel (grey or palette); colours must be turned back into class numbers"
                )
            return np.array(picture)
    except OSError as error:
        raise CapwrightError(
            f"{path} is not a readable picture ({error}): fetch it again"
        ) from None


@dataclass(frozen=True, kw_only=True)
class LabelReader:
    """Item `index` of a set."""

    entries: tuple[tuple[str, Path, Path], ...]  # key, picture, label
    table: Table
    wrong: str

    def __call__(self, index: int) -> SegmentationItem:
        key, image, label = self.entries[index]
        picture, raw_HW = open_rgb(image), read_label(label)
        if raw_HW.shape != (picture.height, picture.width):
            raise CapwrightError(
                f"{label} is {raw_HW.shape[1]} × {raw_HW.shape[0]}, but its picture {image.name} "
                f"is {picture.width} × {picture.height}: labels must keep their picture's size"
            )
        seg_HW = np.asarray(self.table, np.int16)[raw_HW]
        if (seg_HW == WRONG).any():
            value = int(raw_HW[seg_HW == WRONG].max())
            raise CapwrightError(f"{label}: {self.wrong.format(value=value)}")
        return SegmentationItem(key=key, image=picture, seg_HW=seg_HW.astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class LabelPictures:
    """One set of pictures and label pictures; its module gives `load` and `check` away."""

    name: str
    classes: tuple[str, ...]
    has_background: bool
    table: Table
    wrong: str  # a sentence on a stored value that is WRONG; {value} is put in
    find: Callable[[Path, str], Found]
    splits: tuple[str, ...]
    suspect: Callable[[Counter[int]], str | None] = field(default=lambda counts: None)

    def load(self, folder: Path, split: str) -> SegmentationSet:
        """The set; every picture needs its label."""
        images, labels = self.find(folder, split)
        for key, image in images.items():
            if key not in labels:
                raise CapwrightError(
                    f"{image} has no label: run `capwright data check {self.name} {folder}`"
                )
        if not images:
            raise CapwrightError(f"{folder} has no pictures of {self.name}, split {split}")
        entries = tuple((key, image, labels[key]) for key, image in images.items())
        return SegmentationSet(
            name=self.name,
            keys=tuple(images),
            read=LabelReader(entries=entries, table=self.table, wrong=self.wrong),
            classes=self.classes,
            has_background=self.has_background,
        )

    def check(self, folder: Path, split: str | None = None) -> list[str]:
        """Problems of one split, or of the usual one."""
        split = split or self.splits[0]
        try:
            images, labels = self.find(folder, split)
        except CapwrightError as error:
            return [str(error)]
        problems = unpaired(images, labels)
        pairs = [(images[key], labels[key]) for key in images if key in labels]
        return problems + self._wrong_labels(pairs)

    def _wrong_labels(self, pairs: Sequence[tuple[Path, Path]]) -> list[str]:
        """One sentence a kind of problem, with the first file and the number of them."""
        kinds: dict[str, list[str]] = {}
        counts: Counter[int] = Counter()
        with Progress(f"check {self.name}", len(pairs), "labels") as progress:
            for image, label in pairs:
                try:
                    with Image.open(image) as picture:
                        size = picture.size
                    raw_HW = read_label(label)
                except (OSError, CapwrightError) as error:
                    kinds.setdefault("unreadable", []).append(str(error))
                else:
                    if raw_HW.shape != size[::-1]:
                        kinds.setdefault("sizes", []).append(
                            f"{label} is {raw_HW.shape[1]} × {raw_HW.shape[0]}, but its picture "
                            f"is {size[0]} × {size[1]}"
                        )
                    counts.update(np.flatnonzero(np.bincount(raw_HW.ravel())).tolist())
                progress.advance()
        problems = [_with_count(sentences) for sentences in kinds.values()]
        wrong = [value for value in counts if self.table[value] == WRONG]
        if wrong:
            problems.append(self.wrong.format(value=max(wrong)))
        suspicion = None if wrong or not counts else self.suspect(counts)
        return problems + ([suspicion] if suspicion else [])


def unpaired(images: Mapping[str, Path], labels: Mapping[str, Path]) -> list[str]:
    """Sentences on pictures without a file or a label."""
    if not images:
        return ["there are no pictures"]
    problems = []
    lost = [path for path in images.values() if not path.is_file()]
    if lost:
        problems.append(f"{len(lost)} of {len(images)} pictures are missing, first {lost[0]}")
    bare = [path for key, path in images.items() if key not in labels or not labels[key].is_file()]
    if bare:
        problems.append(f"{len(bare)} of {len(images)} pictures have no label, first {bare[0]}")
    return problems


def _with_count(sentences: Sequence[str]) -> str:
    more = len(sentences) - 1
    return sentences[0] + (f" (and {more} more like it)" if more else "")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion did."""

    written: int
    already_there: int


def convert_labels(name: str, labels: Mapping[Path, Path], table: Table, wrong: str) -> Converted:
    """Write for each label picture (key) its class numbers (value), where that is not there yet.

    Each file is complete or absent, so a run that was cut off goes on where it stopped.
    """
    todo = {source: target for source, target in labels.items() if not target.exists()}
    lookup = np.asarray(table, np.int16)
    with Progress(f"convert {name}", len(todo), "labels") as progress:
        for source, target in todo.items():
            raw_HW = read_label(source)
            seg_HW = lookup[raw_HW]
            if (seg_HW == WRONG).any():
                value = int(raw_HW[seg_HW == WRONG].max())
                raise CapwrightError(f"{source}: {wrong.format(value=value)}")
            write_label(target, seg_HW.astype(np.uint8))
            progress.advance()
    return Converted(written=len(todo), already_there=len(labels) - len(todo))


def write_label(path: Path, seg_HW: NDArray[np.uint8]) -> None:
    """Write class numbers as an 8-bit grey PNG, complete or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(seg_HW).save(temporary, "PNG")
