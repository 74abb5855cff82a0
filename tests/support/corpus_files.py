"""Tiny real pictures and tars, and what the index makes of them."""

import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from capwright.corpus.index import IndexConfig, load_index, run
from capwright.corpus.places import ByteReader, places


def picture(number: int, suffix: str = "jpg", size: tuple[int, int] = (24, 16)) -> bytes:
    """A small picture; different numbers give different bytes."""
    shade = number * 37 % 256
    image = Image.new("RGB", size, (shade, 255 - shade, 90))
    image.paste((255 - shade, shade, 10), (0, 0, 1 + number % size[0], size[1] // 2))
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix])
    return buffer.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    """An uncompressed tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def index_rows(corpus: Any, work: Path, **settings: Any) -> list[dict[str, Any]]:
    """Index a corpus and return the rows."""
    run(IndexConfig(corpus=str(corpus), work=work, **settings))
    return load_index(work).to_pylist()


def stored_pictures(work: Path) -> list[bytes]:
    """The bytes at the place that the index gives for each picture."""
    with ByteReader() as reader:
        return [reader.read(*place) for place in places(load_index(work))]
