"""Small cut-outs for tests: coloured shapes with alpha and a caption, one folder a class."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ["beetles", "kites", "stones", "wagons", "ferns", "lamps"]
ADJECTIVES = ["red", "blue", "green", "grey", "old", "small", "shiny", "round", "pale", "dark"]


def make_cutouts(folder: Path, classes: int = 3, per_class: int = 6) -> Path:
    """Write `classes` sub-folders of `per_class` cut-outs each; returns `folder`."""
    rng = np.random.default_rng(0)
    for name in CLASSES[:classes]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            adjective = ADJECTIVES[i % len(ADJECTIVES)]
            colour = tuple(int(level) for level in rng.integers(30, 226, 3))
            write_cutout(folder / name / f"{adjective}_{name[:-1]}.png", colour, wide=i % 2 == 0)
            caption = f"A {adjective} {name[:-1]}.\nsecond line\n"
            (folder / name / f"{adjective}_{name[:-1]}.txt").write_text(caption)
    return folder


def write_cutout(path: Path, colour: tuple[int, ...], wide: bool = True) -> None:
    """An ellipse with a hole of transparent pixels around it."""
    size = (64, 40) if wide else (40, 64)
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((3, 3, size[0] - 4, size[1] - 4), fill=(*colour, 255))
    picture.save(path)
