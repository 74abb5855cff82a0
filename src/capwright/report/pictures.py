"""Pixels for the page: data URIs, class masks in a fixed palette, depth in a fixed colour map.

Shapes: H, W pixels; C classes. Class 0 is the background.
"""

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BACKGROUND = (58, 63, 71)  # slate: quiet on a light and on a dark page
IGNORED = (120, 120, 120)
IGNORE = 255  # pixels that no metric counts
GOLDEN_ANGLE_DEG = 137.508  # successive hues stay far apart, however many classes there are

# Near is light and warm, far is dark and cold; lightness falls evenly, so it reads without colour.
DEPTH_ANCHORS = (
    (255, 247, 214), (253, 203, 122), (240, 132, 88), (196, 72, 100),
    (128, 44, 112), (66, 32, 96), (20, 16, 48),
)  # fmt: skip


def class_palette(count: int) -> list[tuple[int, int, int]]:
    """RGB of classes 0 to `count` - 1; a class keeps its colour when others are added."""
    colours = [BACKGROUND]
    for index in range(count - 1):
        hue = np.deg2rad((25 + index * GOLDEN_ANGLE_DEG) % 360)
        lightness = (0.74, 0.61, 0.86, 0.67, 0.53)[index % 5]  # near hues, far lightness
        colours.append(_oklch(lightness, 0.145, float(hue)))
    return colours[:count]


def mask_uri(labels_HW: NDArray[np.uint8], classes: int) -> str:
    """A mask as a PNG data URI."""
    colours = np.full((256, 3), IGNORED, np.uint8)
    colours[:classes] = class_palette(classes)
    return _png(labels_HW, colours)


def depth_uri(depth_HW: NDArray[np.float32], near_m: float, far_m: float) -> str:
    """A depth map as a PNG data URI; colours are even in log depth, so ratios look alike."""
    low, high = np.log(near_m), np.log(max(far_m, near_m * 1.01))
    clipped = np.clip(np.nan_to_num(depth_HW, nan=far_m, posinf=far_m), near_m, far_m)
    levels = np.rint((np.log(clipped) - low) / (high - low) * 255)
    return _png(np.clip(levels, 0, 255).astype(np.uint8), depth_colours())


def depth_range(depth_HW: NDArray[np.float32], margin: float = 1.0) -> tuple[float, float]:
    """Nearest and farthest metres of a true depth map, without the outermost percent.

    The range is widened by the factor `margin` to both sides, so that predictions which are off
    by less than that still differ in colour.
    """
    valid = depth_HW[np.isfinite(depth_HW) & (depth_HW > 0)]
    if not valid.size:
        return 1.0, 10.0
    near, far = np.percentile(valid, [1, 99])
    near, far = max(float(near), 1e-2), max(float(far), float(near) * 1.01, 2e-2)
    return near / margin, far * margin


def depth_colours() -> NDArray[np.uint8]:
    """The colour map, [256, 3], from near to far."""
    anchors = np.array(DEPTH_ANCHORS, np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def photo_uri(pixels_HW3: NDArray[np.uint8]) -> str:
    """A picture as a JPEG data URI."""
    return _jpeg(Image.fromarray(pixels_HW3))


def file_uri(path: Path, inside: Path, max_side: int = 320) -> str | None:
    """A picture file as a JPEG data URI; None if it is no picture or lies outside `inside`."""
    if not path.resolve().is_relative_to(inside.resolve()):
        return None
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((max_side, max_side))
    return _jpeg(small)


def _oklch(lightness: float, chroma: float, hue_rad: float) -> tuple[int, int, int]:
    """OKLCH to 8-bit sRGB (B. Ottosson, 2020), clipped to the gamut."""
    a, b = chroma * np.cos(hue_rad), chroma * np.sin(hue_rad)
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728],
         [1, -0.0894841775, -1.2914855480]]
    )  # fmt: skip
    to_rgb = np.array(
        [[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
         [-0.0041960863, -0.7034186147, 1.7076147010]]
    )  # fmt: skip
    linear = np.clip(to_rgb @ (to_lms @ np.array([lightness, a, b])) ** 3, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(x) for x in np.rint(srgb * 255))
    return red, green, blue


def _png(levels_HW: NDArray[np.uint8], colours: NDArray[np.uint8]) -> str:
    height, width = levels_HW.shape
    image = Image.frombytes("P", (width, height), levels_HW.astype(np.uint8).tobytes())
    image.putpalette(colours.tobytes())
    return _uri(image, "PNG", optimize=True)


def _jpeg(image: Image.Image) -> str:
    return _uri(image, "JPEG", quality=88)


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{content}"
