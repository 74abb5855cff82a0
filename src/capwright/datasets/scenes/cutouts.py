"""Cut-outs (RGBA photographs with a caption), their classes and their held-out quarter.

Reads FOLDER/**/NAME.png with the first line of NAME.txt, and an optional FOLDER/heights.json
({"class": metres}); writes nothing. Without a folder the default stamps are used (`stamps`).

Classes come from folder names: each folder with pictures is a class; one with fewer than
`MIN_PER_CLASS` usable cut-outs merges into the folder above it, again and again up to the
top-level folder; what is then still too small is left out. Pictures that lie in FOLDER itself
belong to no sub-folder and take FOLDER's own name as their class.

A quarter of every class (rounded, at least one) is held out. The choice depends on a hash of each
relative path alone, so adding a cut-out moves at most one other across the line.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets.scenes import stamps
from capwright.datasets.scenes.words import head_name, noun_phrase

MIN_PER_CLASS = 5
MIN_SIDE_PX = 46  # of the default stamps' larger side: smaller ones are mush when enlarged
DEFAULT_HEIGHT_M = 1.0
MAX_CLASSES = 255  # segmentation is stored in one byte, 0 is the background


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """One photograph of a thing, cropped to its alpha."""

    path: str  # relative to the folder, with forward slashes
    class_id: int  # index into CutoutSet.classes
    caption: str  # noun phrase with its article: "a Tamworth pig"
    name: str  # without article and measure: "Tamworth pig"
    rgba: NDArray[np.uint8]  # [h, w, 4]


@dataclass(frozen=True, kw_only=True)
class ObjectClass:
    """A class of things; all of them are `height_m` on the larger side of their box."""

    name: str
    height_m: float


@dataclass(frozen=True, kw_only=True)
class CutoutSet:
    """All usable cut-outs of a folder."""

    classes: tuple[ObjectClass, ...]  # sorted by name
    seen: tuple[Cutout, ...]  # sorted by path
    unseen: tuple[Cutout, ...]  # the held-out quarter
    left_out: dict[str, int]  # reason -> how many
    guessed_heights: tuple[str, ...]  # classes whose height nobody gave
    digest: str  # of paths, captions and pixels


def load_cutouts(folder: Path | None, per_class: int | None = None) -> CutoutSet:
    """Find, read and split the cut-outs of `folder` (None: the default stamps).

    With `per_class` a class keeps that many of its cut-outs, chosen by a hash of their paths.

    Raises CapwrightError where the folder is missing, holds no usable cut-out or no class of five.
    """
    default = folder is None
    root = stamps.find_stamps() if folder is None else folder
    if not root.is_dir():
        raise CapwrightError(
            f"no folder of cut-outs at {root}: pass --cutouts FOLDER with NAME.png and NAME.txt"
        )
    left_out: Counter[str] = Counter()
    found = _read_all(root, default, left_out)
    if not found:
        raise CapwrightError(_nothing_usable(root, left_out))
    class_of = _classes([path for path, _, _ in found], root, default)
    left_out["too few for a class"] += sum(path not in class_of for path, _, _ in found)
    if not class_of:
        raise CapwrightError(
            f"no class in {root} has {MIN_PER_CLASS} usable cut-outs ({len(found)} in all): "
            f"put at least {MIN_PER_CLASS} pairs NAME.png and NAME.txt into one sub-folder"
        )
    names = sorted(set(class_of.values()))
    if len(names) > MAX_CLASSES:
        raise CapwrightError(
            f"{len(names)} classes of cut-outs in {root}, at most {MAX_CLASSES} fit the masks: "
            "pass a folder with fewer sub-folders"
        )
    heights = stamps.HEIGHTS_M if default else _read_heights(root, names)
    cutouts = tuple(
        _cutout(path, names.index(class_of[path]), caption, rgba)
        for path, caption, rgba in found
        if path in class_of
    )
    if per_class is not None:
        chosen = {path for ranked in _ranked(cutouts) for path in ranked[:per_class]}
        left_out["over the limit of the class"] += len(cutouts) - len(chosen)
        cutouts = tuple(cutout for cutout in cutouts if cutout.path in chosen)
    return _cutout_set(cutouts, names, heights, left_out)


def load_drawings() -> CutoutSet:
    """The drawings among the default stamps, which scenes leave out (`stamps.DRAWN`)."""
    root = stamps.find_stamps()
    found = []
    for path in sorted(root.rglob("*.png")):
        relative = path.relative_to(root).as_posix()
        name = stamps.drawn_class(relative)
        rgba = _read_rgba(path) if name else None
        if rgba is not None:
            caption = noun_phrase(_first_line(path.with_suffix(".txt")), path.stem)
            found.append((relative, name, caption, rgba))
    names = sorted({name for _, name, _, _ in found})
    cutouts = tuple(
        _cutout(relative, names.index(name), caption, rgba)
        for relative, name, caption, rgba in found
    )
    return _cutout_set(cutouts, names, stamps.HEIGHTS_M, Counter())


def _cutout_set(
    cutouts: tuple[Cutout, ...],
    names: list[str],
    heights: Mapping[str, float],
    left_out: Mapping[str, int],
) -> CutoutSet:
    """The set with its quarter held out."""
    held = _held_out(cutouts)
    return CutoutSet(
        classes=tuple(
            ObjectClass(name=name, height_m=heights.get(name, DEFAULT_HEIGHT_M)) for name in names
        ),
        seen=tuple(cutout for cutout in cutouts if cutout.path not in held),
        unseen=tuple(cutout for cutout in cutouts if cutout.path in held),
        left_out={reason: n for reason, n in sorted(left_out.items()) if n},
        guessed_heights=tuple(name for name in names if name not in heights),
        digest=_digest(cutouts),
    )


def _cutout(path: str, class_id: int, caption: str, rgba: NDArray[np.uint8]) -> Cutout:
    name = head_name(caption)
    return Cutout(path=path, class_id=class_id, caption=caption, name=name, rgba=rgba)


def _read_all(
    root: Path, default: bool, left_out: Counter[str]
) -> list[tuple[str, str, NDArray[np.uint8]]]:
    """(relative path, caption, pixels) of every usable picture, sorted by path."""
    found = []
    for path in sorted(root.rglob("*.png")):
        relative = path.relative_to(root).as_posix()
        reason = stamps.left_out(relative) if default else ""
        line = "" if reason else _first_line(path.with_suffix(".txt"))
        if not reason and not line:
            reason = "no caption in the first line of NAME.txt"
        rgba = None if reason else _read_rgba(path)
        if rgba is None:
            left_out[reason or "no alpha channel, or an unreadable picture"] += 1
        elif default and max(rgba.shape[:2]) < MIN_SIDE_PX:
            left_out[f"smaller than {MIN_SIDE_PX} pixels"] += 1
        else:
            found.append((relative, noun_phrase(line, path.stem), rgba))
    return found


def _first_line(path: Path) -> str:
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[0].strip() if lines else ""


def _read_rgba(path: Path) -> NDArray[np.uint8] | None:
    """Pixels cropped to the alpha's bounding box; None without alpha or where unreadable."""
    try:
        with Image.open(path) as picture:
            has_alpha = "A" in picture.getbands() or "transparency" in picture.info
            rgba = picture.convert("RGBA") if has_alpha else None
    except (OSError, ValueError, SyntaxError):
        return None
    if rgba is None:
        return None
    alpha = rgba.getchannel("A")
    box = alpha.point([255 * (level >= 128) for level in range(256)]).getbbox()
    if box is None or alpha.getextrema()[0] == 255:  # nothing visible, or nothing cut out
        return None
    return np.asarray(rgba.crop(box)).copy()


def _classes(paths: list[str], root: Path, default: bool) -> dict[str, str]:
    """Path -> class name; a path that ends in no class is missing."""
    folder_of = {path: str(PurePosixPath(path).parent) for path in paths}
    if default:
        folder_of = {path: _fixed_folder(folder) for path, folder in folder_of.items()}
    while True:
        counts = Counter(folder_of.values())
        small = [f for f, n in counts.items() if n < MIN_PER_CLASS and "/" in f]
        if not small:
            break
        deepest = max(folder.count("/") for folder in small)
        for path, folder in folder_of.items():
            if folder in small and folder.count("/") == deepest:
                folder_of[path] = str(PurePosixPath(folder).parent)
    names = _distinct_names([f for f, n in counts.items() if n >= MIN_PER_CLASS], root)
    return {path: names[folder] for path, folder in folder_of.items() if folder in names}


def _fixed_folder(folder: str) -> str:
    """The class that the default table gives to this folder of stamps, else the folder itself."""
    for prefix, name in stamps.CLASS_OF_FOLDER.items():
        if folder == prefix or folder.startswith(prefix + "/"):
            return {"mammals": "animals/mammals"}.get(name, name)
    return folder


def _distinct_names(folders: list[str], root: Path) -> dict[str, str]:
    """Folder -> its last part; the whole path where two folders end alike."""
    last = {f: root.resolve().name if f == "." else PurePosixPath(f).name for f in folders}
    times = Counter(last.values())
    return {folder: name if times[name] == 1 else folder for folder, name in last.items()}


def _read_heights(root: Path, names: list[str]) -> dict[str, float]:
    path = root / "heights.json"
    if not path.is_file():
        return {}
    try:
        given: Any = json.loads(path.read_text(encoding="utf-8"))
        heights = {str(name): float(metres) for name, metres in given.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise CapwrightError(
            f'{path} is no table of heights ({error}): write {{"class": metres}}, for example '
            f'{{"{names[0]}": 0.5}}'
        ) from error
    for name, metres in heights.items():
        if name not in names:
            raise CapwrightError(
                f"{path} gives a height for {name!r}, which is no class here: "
                f"allowed are {', '.join(names)}"
            )
        if not 0.001 <= metres <= 100:
            raise CapwrightError(
                f"{path} gives {name!r} a height of {metres} m: allowed are 0.001 to 100 metres"
            )
    return heights


def _held_out(cutouts: tuple[Cutout, ...]) -> set[str]:
    held: set[str] = set()
    for ranked in _ranked(cutouts):
        held.update(ranked[: max(1, int(len(ranked) / 4 + 0.5))])
    return held


def _ranked(cutouts: tuple[Cutout, ...]) -> list[list[str]]:
    """The paths of each class in an order that is random but always the same."""
    by_class: dict[int, list[str]] = defaultdict(list)
    for cutout in cutouts:
        by_class[cutout.class_id].append(cutout.path)
    return [
        sorted(paths, key=lambda path: hashlib.sha256(path.encode()).hexdigest())
        for paths in by_class.values()
    ]


def _digest(cutouts: tuple[Cutout, ...]) -> str:
    total = hashlib.sha256()
    for cutout in cutouts:
        total.update(f"{cutout.path}\0{cutout.caption}\0{cutout.rgba.shape}\0".encode())
        total.update(cutout.rgba.tobytes())
    return total.hexdigest()[:12]


def _nothing_usable(root: Path, left_out: Counter[str]) -> str:
    wanted = "put RGBA pictures NAME.png with a caption in NAME.txt into sub-folders, one a class"
    if not left_out:
        return f"no .png picture in {root}: {wanted}"
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(left_out.items()))
    return f"no usable cut-out in {root} ({reasons}): {wanted}"
