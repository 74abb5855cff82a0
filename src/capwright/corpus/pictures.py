"""Bytes to pixels: read a picture where the index says that it lies, check it, decode it, or decode
a whole corpus once into a memory map.

The web's pictures are handled or refused with a reason to count: EXIF-turned ones are turned, of
animated ones the first frame is taken, CMYK and 16-bit ones are converted, and more than
`MAX_PIXELS` are not decoded. JPEGs are decoded at a reduced scale (libjpeg's DCT scaling) where
that suffices, which is where the speed comes from.
"""

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from capwright.core.config import digest
from capwright.core.files import atomic_path
from capwright.core.progress import Progress
from capwright.corpus.places import ByteReader, places

MAX_PIXELS = 89_478_485  # Pillow's own line between large and suspicious
LARGE = 16_000_000  # pixels above which one picture is decoded at a time, for the memory
LARGE_ONES = threading.Lock()
FACTS_SIDE = 64  # pixels at which a perceptual hash is taken
SHARPNESS = 1.25  # times more pixels a side than needed are decoded, so that resizing decides
UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
ORIENTATION = ExifTags.Base.Orientation


class PictureError(Exception):
    """A picture that cannot be decoded; the message is a short reason to count."""


class PictureFacts(NamedTuple):
    """What the index keeps of a picture."""

    width: int
    """Pixels, after turning by EXIF."""
    height: int
    sha256: str
    """Of the file's bytes."""
    phash: int
    """64-bit perceptual hash (DCT), as a signed number."""


def facts(data: bytes) -> PictureFacts:
    """Decode a picture whole, at a small scale, and say what it is; raises PictureError."""
    import imagehash

    picture, (width, height) = _decode(data, min_side=FACTS_SIDE)
    small = picture.resize((FACTS_SIDE, FACTS_SIDE), Image.Resampling.BOX)
    bits = imagehash.phash(small.convert("L")).hash.flatten()
    phash = int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)
    return PictureFacts(width, height, hashlib.sha256(data).hexdigest(), phash)


def picture_row(data: bytes) -> dict[str, Any]:
    """The columns of the index that come from a picture's bytes; raises PictureError."""
    return facts(data)._asdict()


def open_picture(data: bytes, *, max_side: int | None = None) -> Image.Image:
    """Decode to RGB; with `max_side` the longer side is at most so many pixels.

    Raises PictureError.
    """
    picture, (width, height) = _decode(data, min_side=None, max_side=max_side)
    if max_side is None or max(picture.size) <= max_side:
        return picture
    scale = max_side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def decode_rgb(data: bytes, *, size: int | None = None) -> NDArray[np.uint8]:
    """Decode to RGB uint8 [H, W, 3]; with `size` the shorter side is resized to it and the centre
    is cut out.

    Raises PictureError for what is not a whole picture.
    """
    picture, _ = _decode(data, min_side=size)
    if size is not None and picture.size != (size, size):
        picture = square(picture, size)
    return np.asarray(picture)


def read_members(index: pa.Table, suffix: str) -> Iterator[bytes]:
    """Yield the member with this suffix of every sample of the index, b"" where it has none."""
    columns = zip(index["file"].to_pylist(), index["members"].to_pylist(), strict=True)
    with ByteReader() as reader:
        for path, members in columns:
            found = {member["suffix"]: (member["offset"], member["size"]) for member in members}
            yield reader.read(path, *found[suffix]) if suffix in found else b""


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
    with ByteReader() as reader, Progress("decode", len(pixels), "pictures") as progress:
        for i, place in enumerate(places(index)):
            pixels[i] = decode_rgb(reader.read(*place), size=size)
            progress.advance()


def _decode(
    data: bytes, *, min_side: int | None, max_side: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture in RGB, turned, perhaps smaller than it is, and its true size.

    It is not decoded smaller than `min_side` (shorter side) or `max_side` (longer side) asks for.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError("picture with too many pixels")
            shrink = _shrink(width, height, min_side, max_side)
            turn = image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1
            with LARGE_ONES if width * height > LARGE else nullcontext():
                picture = _jpeg(data, image, shrink)
                if picture is None:
                    image.draft("RGB", (int(width * shrink), int(height * shrink)))
                    picture = _rgb(image)
            picture = _turn(picture, turn)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("picture with too many pixels") from error
    except UNREADABLE as error:
        raise PictureError(f"unreadable picture: {type(error).__name__}") from error
    return picture, ((height, width) if 5 <= turn <= 8 else (width, height))


def _shrink(width: int, height: int, min_side: int | None, max_side: int | None) -> float:
    """The share of the sides that has to be decoded."""
    if min_side is not None:
        return min(1.0, SHARPNESS * min_side / min(width, height))
    if max_side is not None:
        return min(1.0, SHARPNESS * max_side / max(width, height))
    return 1.0


def _jpeg(data: bytes, image: Image.Image, shrink: float) -> Image.Image | None:
    """A plain JPEG by libjpeg-turbo at the smallest scale that suffices; None for others."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    import simplejpeg

    width, height = image.size
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=max(1, int(height * shrink)),
            min_width=max(1, int(width * shrink)),
        )
    except ValueError:
        return None  # a harmless oddity or a broken file: Pillow tells
    return Image.fromarray(pixels)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise PictureError("picture of floating-point numbers")
    if image.mode.startswith("I"):  # 16 bits a channel; convert() alone would clip them
        high = np.asarray(image)
        shift = 8 if high.max(initial=0) > 255 else 0
        image = Image.fromarray((high >> shift).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _turn(picture: Image.Image, orientation: int) -> Image.Image:
    """Undo the camera's turn; 1 is upright (EXIF 2.3, tag Orientation)."""
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return picture if method is None else picture.transpose(method)


def square(picture: Image.Image, size: int) -> Image.Image:
    """What torchvision's Resize and CenterCrop give, but only the square that stays is computed: a
    picture of 1 x 60,000 never grows to 224 x 13 million.
    """
    width, height = picture.size
    short = min(width, height)
    scale_x, scale_y = (side / (size * side // short) for side in (width, height))
    left, top = (round((size * side // short - size) / 2) for side in (width, height))
    box = (left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
