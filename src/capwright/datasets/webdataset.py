"""Evaluation sets in the form that CLIP_benchmark publishes (`wds/NAME`).

Reads SPLIT/*.tar (SPLIT/nshards.txt says how many there should be) or, without folders of splits,
*.tar. A sample is a picture (`jpg`, `png` or `webp`) with `cls` (the class as a number) or with
`txt` (one caption a line). Beside the splits: classnames.txt, zeroshot_classification_templates.txt
(`{c}` stands for the name) and dataset_type.txt (`retrieval` for captions). One pass over the tars
notes where members lie; pictures are read when asked for.
"""

import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import PictureError, open_picture
from capwright.corpus.places import ByteReader
from capwright.datasets.sets import CaptionItem, CaptionSet, ClassificationItem, ClassificationSet

SPLITS = ("test", "train", "val", "validation")
_PICTURES = ("jpg", "jpeg", "png", "webp")
Member = tuple[str, int, int]  # tar, first byte, bytes


@dataclass(frozen=True, kw_only=True)
class _Samples:
    keys: tuple[str, ...]
    pictures: tuple[Member, ...]
    reader: ByteReader = field(default_factory=ByteReader)

    def picture(self, index: int) -> Image.Image:
        """The decoded picture."""
        try:
            return open_picture(self.reader.read(*self.pictures[index]))
        except PictureError as error:
            raise CapwrightError(
                f"sample {self.keys[index]!r} in {self.pictures[index][0]}: {error}; fetch it again"
            ) from None


@dataclass(frozen=True)
class _Labelled:
    samples: _Samples
    labels: tuple[int, ...]

    def __call__(self, index: int) -> ClassificationItem:
        return ClassificationItem(
            key=self.samples.keys[index],
            image=self.samples.picture(index),
            label=self.labels[index],
        )


@dataclass(frozen=True)
class _Captioned:
    samples: _Samples
    captions: tuple[tuple[str, ...], ...]

    def __call__(self, index: int) -> CaptionItem:
        return CaptionItem(
            key=self.samples.keys[index],
            image=self.samples.picture(index),
            captions=self.captions[index],
        )


def load(folder: Path, split: str) -> ClassificationSet | CaptionSet:
    """A set of classes, or of captions where dataset_type.txt says `retrieval`."""
    retrieval = is_retrieval(folder)
    label = "txt" if retrieval else "cls"
    found = _members(_tars(folder, split))
    rows = []
    for key, members in found.items():
        picture = next((members[s] for s in _PICTURES if s in members), None)
        if picture is None or label not in members:
            lacks = f".{label}" if picture else "picture"
            raise CapwrightError(
                f"sample {key!r} of {folder}/{split} has no {lacks}: a set for "
                f"{'retrieval' if retrieval else 'classification'} has pictures with .{label} "
                "(dataset_type.txt says which of the two it is)"
            )
        rows.append((key, picture, members[label]))
    if not rows:
        raise CapwrightError(f"the tars of {folder}, split {split}, are empty: fetch them again")
    samples = _Samples(keys=tuple(row[0] for row in rows), pictures=tuple(row[1] for row in rows))
    with ByteReader() as reader:
        texts = [reader.read(*place).decode("utf-8", "replace").strip() for _, _, place in rows]
    name = folder.name
    if retrieval:
        captions = tuple(tuple(filter(None, text.splitlines())) for text in texts)
        return CaptionSet(name=name, keys=samples.keys, read=_Captioned(samples, captions))
    classes = _lines(folder / "classnames.txt")
    labels = _labels(texts, samples.keys, len(classes), folder)
    return ClassificationSet(
        name=name,
        keys=samples.keys,
        read=_Labelled(samples, labels),
        classes=classes,
        templates=_lines(folder / "zeroshot_classification_templates.txt", needed=False),
        labels=labels,
    )


def check(folder: Path, split: str | None = None) -> list[str]:
    """Problems: a missing file or member, a label outside the names, too few tars."""
    split = split or SPLITS[0]
    try:
        tars = _tars(folder, split)
        loaded = load(folder, split)
    except CapwrightError as error:
        return [str(error)]
    problems = []
    count = tars[0].parent / "nshards.txt"
    if count.is_file() and int(count.read_text()) != len(tars):
        problems.append(
            f"{count} says {count.read_text().strip()} tars, but {len(tars)} are there: "
            "fetch the others"
        )
    if isinstance(loaded, ClassificationSet):
        wrong = [template for template in loaded.templates if "{c}" not in template]
        if wrong:
            problems.append(
                f"{len(wrong)} templates have no {{c}} for the class name, first {wrong[0]!r}"
            )
    return problems


def is_retrieval(folder: Path) -> bool:
    """Whether the set has captions instead of classes."""
    path = folder / "dataset_type.txt"
    return path.is_file() and path.read_text(encoding="utf-8").strip() == "retrieval"


def _tars(folder: Path, split: str) -> list[Path]:
    root = folder / split if (folder / split).is_dir() else folder
    tars = sorted(root.glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
    if not tars:
        raise CapwrightError(
            f"{folder} has no {split}/*.tar: give the folder that holds classnames.txt and the "
            "folder of the split, as CLIP_benchmark publishes sets"
        )
    return tars


def _members(tars: list[Path]) -> dict[str, dict[str, Member]]:
    """Members by sample, then by suffix. Keys repeat from tar to tar, so the tar is part of one."""
    found: dict[str, dict[str, Member]] = {}
    for path in tars:
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isfile():
                        head, slash, base = member.name.rpartition("/")
                        stem, _, suffix = base.partition(".")
                        sample = found.setdefault(f"{path.stem}/{head}{slash}{stem}", {})
                        sample[suffix.lower()] = (str(path), member.offset_data, member.size)
        except tarfile.TarError as error:
            raise CapwrightError(f"{path} is a broken tar ({error}): fetch it again") from None
    return found


def _lines(path: Path, *, needed: bool = True) -> tuple[str, ...]:
    if not path.is_file():
        if needed:
            raise CapwrightError(f"{path} is missing: it gives the class names, one a line")
        return ()
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())


def _labels(texts: list[str], keys: tuple[str, ...], classes: int, folder: Path) -> tuple[int, ...]:
    labels = []
    for key, text in zip(keys, texts, strict=True):
        if not text.isdecimal() or int(text) >= classes:
            raise CapwrightError(
                f"sample {key!r} of {folder} has the class {text!r}, but classnames.txt allows 0 "
                f"to {classes - 1}: take the classnames.txt that belongs to these tars"
            )
        labels.append(int(text))
    return tuple(labels)
