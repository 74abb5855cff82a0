"""Bytes to pixels: read a member by its offset, decode it, or decode a whole corpus once into a
memory map.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from capwright.core.config import digest
from capwright.core.files import atomic_path
from capwright.core.progress import Progress

MAX_OPEN_FILES = 64


class PictureError(Exception):
    """A picture that cannot be decoded; the message is a short reason to count."""


class ByteReader:
    """Reads byte ranges and keeps the last files open; each thread and each process has its own
    handles.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset` of the file at `path` (any fsspec address)."""
        stream = self._open(path)
        stream.seek(offset)
        return stream.read(size)

    def _open(self, path: str) -> BinaryIO:
        files: OrderedDict[str, BinaryIO] = self._local.__dict__.setdefault("files", OrderedDict())
        if path not in files:
            files[path] = fsspec.open(path, "rb").open()
            if len(files) > MAX_OPEN_FILES:
                files.popitem(last=False)[1].close()
        files.move_to_end(path)
        return files[path]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in self._local.__dict__.pop("files", {}).values():
            stream.close()


def read_members(index: pa.Table, suffix: str) -> Iterator[bytes]:
    """Yield the member with this suffix of every sample of the index, b"" where it has none."""
    columns = zip(index["shard_path"].to_pylist(), index["members"].to_pylist(), strict=True)
    with ByteReader() as reader:
        for path, members in columns:
            places = {member["suffix"]: (member["offset"], member["size"]) for member in members}
            yield reader.read(path, *places[suffix]) if suffix in places else b""


def decode_rgb(data: bytes, *, size: int | None = None) -> NDArray[np.uint8]:
    """Decode to RGB uint8 [H, W, 3]; with `size` the shorter side is resized to it and the centre
    is cut out.

    JPEGs are decoded at a reduced scale where that suffices. Raises PictureError for what is not a
    whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if size is not None:
                image.draft("RGB", (size, size))
            picture = image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"unreadable picture: {type(error).__name__}") from error
    if size is not None and picture.size != (size, size):
        picture = _resize_and_crop(picture, size)
    return np.asarray(picture)


def load_pixels(index: pa.Table, *, size: int, cache: Path | None = None) -> NDArray[np.uint8]:
    """Decode every picture of the index to uint8 [N, size, size, 3].

    With a `cache` folder the array is a memory map there, built once for these pictures and this
    size. Raises PictureError when a picture changed since it was indexed.
    """
    if cache is None:
        pixels = np.empty((index.num_rows, size, size, 3), np.uint8)
        _fill(pixels, index, size)
        return pixels
    path = cache / f"pixels-{size}-{digest(index['sha256'].to_pylist())}.npy"
    if not path.exists():
        with atomic_path(path) as temporary:
            pixels = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.uint8, shape=(index.num_rows, size, size, 3)
            )
            _fill(pixels, index, size)
            pixels.flush()
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def _fill(pixels: NDArray[np.uint8], index: pa.Table, size: int) -> None:
    places = zip(
        *(index[c].to_pylist() for c in ("shard_path", "image_offset", "image_size")), strict=True
    )
    with ByteReader() as reader, Progress("decode", len(pixels), "pictures") as progress:
        for i, (path, offset, length) in enumerate(places):
            pixels[i] = decode_rgb(reader.read(path, offset, length), size=size)
            progress.advance()


def _resize_and_crop(picture: Image.Image, size: int) -> Image.Image:
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))
