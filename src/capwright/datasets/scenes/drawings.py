"""Pictures of one drawn thing each: a set for classification in another style than the scenes'.

Reads cut-outs. Style "drawn" takes the drawings among the default stamps, which the scenes leave
out; style "inked" redraws the scenes' photographs in a few flat colours with dark outlines. FOLDER
takes the place of either. Writes OUT/{train,test}/CLASS/*.png and OUT/classnames.txt, which
imagenet.py reads, and OUT/manifest.json.

A quarter of the cut-outs of each class is for the test alone, the held-out one of cutouts.py. Every
class has equally many pictures. A class's line in classnames.txt has the names of its photographed
cut-outs ("birds|heron|toucan"), as captions name things and not classes.

Picture i of a class and split is a function of (seed, split, class, i): one cut-out on paper,
turned, mirrored or not, of varying size and place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, write_json
from capwright.core.run_folder import claim
from capwright.datasets.imagenet import NAMES_FILE
from capwright.datasets.scenes.cutouts import Cutout, CutoutSet, load_cutouts, load_drawings

STYLES = ("drawn", "inked")
DONE = "drawings.json"


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """What is drawn, how often, and where it is written."""

    out: Path
    style: Literal["drawn", "inked"] = "drawn"
    cutouts: Path | None = None  # folder of NAME.png + NAME.txt; None takes the default stamps
    per_class: int | None = None  # photographs a class, held-out ones included; None is all
    train: int = 100  # pictures a class
    test: int = 40
    size: int = 96  # pixels a side
    seed: int = 0

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise CapwrightError(f"style {self.style!r}: allowed are {', '.join(STYLES)}")
        for name, low, high in (("train", 1, 10**6), ("test", 1, 10**6), ("size", 16, 1024)):
            if not low <= getattr(self, name) <= high:
                raise CapwrightError(
                    f"{name} is {getattr(self, name)}: allowed are {low} to {high}"
                )


@dataclass(frozen=True, kw_only=True)
class DrawingSummary:
    """What was made."""

    out: Path
    classes: tuple[str, ...]
    cutouts: dict[str, int]  # how many different ones in each split
    pictures: dict[str, int]


def run(config: DrawingConfig) -> DrawingSummary:
    """Write both splits; a set that is there is left as it is."""
    found = drawings(config)
    names = [one.name for one in found.classes]
    claim(config.out, as_dict(config) | {"out": "", "cutouts": found.digest})
    parts = {"train": (found.seen, config.train), "test": (found.unseen, config.test)}
    if not (config.out / DONE).exists():
        for name, (cutouts, count) in parts.items():
            _write_split(config, name, names, cutouts, count)
        lines = "".join(f"{line}\n" for line in class_lines(names, config))
        with atomic_path(config.out / NAMES_FILE) as temporary:
            temporary.write_text(lines, encoding="utf-8")
    summary = DrawingSummary(
        out=config.out,
        classes=tuple(names),
        cutouts={name: len(cutouts) for name, (cutouts, _) in parts.items()},
        pictures={name: count * len(names) for name, (_, count) in parts.items()},
    )
    write_json(config.out / DONE, as_dict(summary))
    return summary


def drawings(config: DrawingConfig) -> CutoutSet:
    """The cut-outs of a style; `seen` is for training, `unseen` for the test."""
    if config.cutouts is not None or config.style == "inked":
        return load_cutouts(config.cutouts, config.per_class)
    return load_drawings()


def class_lines(names: Sequence[str], config: DrawingConfig) -> list[str]:
    """A line a class: its own name, then those of its photographed cut-outs."""
    photographs = load_cutouts(config.cutouts, config.per_class)
    words: dict[str, list[str]] = {one.name: [one.name] for one in photographs.classes}
    for cutout in photographs.seen:
        words[photographs.classes[cutout.class_id].name].append(cutout.name.lower())
    return ["|".join(dict.fromkeys(words.get(name, [name]))) for name in names]


def _write_split(
    config: DrawingConfig, split: str, names: Sequence[str], cutouts: Sequence[Cutout], count: int
) -> None:
    with atomic_path(config.out / split) as folder:
        for number, name in enumerate(names):
            (folder / name).mkdir(parents=True)
            things = [prepared(one.rgba, config) for one in cutouts if one.class_id == number]
            for i in range(count):
                rng = np.random.default_rng([config.seed, split == "test", number, i])
                thing = things[int(rng.integers(len(things)))]
                draw(rng, thing, config.size).save(folder / name / f"{i:05d}.png")


def prepared(rgba: NDArray[np.uint8], config: DrawingConfig) -> Image.Image:
    """A cut-out in the style, at most twice as large as the picture."""
    thing = Image.fromarray(rgba)
    thing.thumbnail((2 * config.size, 2 * config.size), Image.Resampling.LANCZOS)
    return ink(thing) if config.style == "inked" else thing


def draw(rng: np.random.Generator, thing: Image.Image, size: int) -> Image.Image:
    """One thing on paper, RGB, `size` pixels a side."""
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    thing = thing.convert("RGBa").rotate(
        rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True
    )
    scale = size * rng.uniform(0.6, 0.95) / max(thing.size)
    sides = [max(1, round(side * scale)) for side in thing.size]
    thing = thing.resize((sides[0], sides[1]), Image.Resampling.BICUBIC).convert("RGBA")
    paper = tuple(int(level) for level in rng.integers(205, 256, 3))
    page = Image.new("RGB", (size, size), paper)
    left, top = (int(rng.integers(size - side + 1)) for side in thing.size)
    page.paste(thing, (left, top), thing)
    return page


def ink(thing: Image.Image, colours: int = 5) -> Image.Image:
    """A photograph with alpha as a drawing: flat colours, dark outlines."""
    alpha = thing.getchannel("A").point([255 * (level >= 128) for level in range(256)])
    smooth = thing.convert("RGB").filter(ImageFilter.MedianFilter(5))
    flat = smooth.quantize(colours, dither=Image.Dither.NONE).convert("RGB")
    inside = flat.convert("L").filter(ImageFilter.FIND_EDGES).point(_threshold(40))
    rim = ImageChops.subtract(alpha, alpha.filter(ImageFilter.MinFilter(5)))
    lines = ImageChops.lighter(ImageChops.darker(inside, alpha), rim)
    flat.paste((20, 20, 25), (0, 0), lines)
    flat.putalpha(alpha)
    return flat


def _threshold(level: int) -> list[int]:
    return [255 * (value >= level) for value in range(256)]
