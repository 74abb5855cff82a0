"""Writes pictures and labels where data sets have them, and runs `capwright data`."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from click.testing import CliRunner
from PIL import Image

from capwright.cli import group

HEIGHT, WIDTH = 6, 8


def write_picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), colour: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 20, 200)).save(path)
    return path


def label_of(*values: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A label picture: the values one after the other, again and again."""
    return np.resize(np.array(values, np.uint8), shape)


def write_label(
    path: Path, *values: int, palette: bool = False, shape: tuple[int, int] = (HEIGHT, WIDTH)
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(label_of(*values, shape=shape))
    if palette:
        picture.putpalette([value % 256 for value in range(768)])
    picture.save(path)
    return path


def write_depth(path: Path, stored: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """A 16-bit picture of one value; the first pixel is unknown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(shape, stored, np.uint16)
    values[0, 0] = 0
    Image.fromarray(values).save(path)
    return path


def data(*arguments: str | Path) -> SimpleNamespace:
    """Run `capwright data` with these arguments."""
    result = CliRunner().invoke(group, ["data", *map(str, arguments)])
    assert result.exit_code in (0, 2), result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)
