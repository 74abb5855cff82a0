"""Grounds and backdrops: textures in natural palettes, made once a run and cropped for every scene.

Reads the cut-outs' own pixels (for strongly enlarged, blurred crops) and, where given, a folder of
photographs; writes nothing.

A texture is smooth 1/f noise: white noise whose spectrum is divided by frequency^beta, which is the
spectrum of natural pictures (Field, 1987); a palette of three or four colours turns it into grass,
sand or cloud. The noise is periodic, so a ground can be sampled without end.

The ground is drawn in perspective: a pixel in row y shows ground at f / (y - y_h) camera heights,
and texture coordinates are measured in camera heights times a random factor. The texture so shows
the pitch of the camera but not how many metres anything is away. Far rows read coarser copies of
the texture (a mipmap), which keeps them from flickering into noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from capwright.core.errors import CapwrightError
from capwright.datasets.scenes.cutouts import Cutout
from capwright.datasets.scenes.geometry import Camera

Pixels = NDArray[np.uint8]  # [h, w, 3]
Field = NDArray[np.float32]

GROUNDS_PER_KIND = 3
BACKDROPS_PER_KIND = 3
PHOTOGRAPHS = 12  # of each, from the cut-outs or the given folder
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

# kind -> (phrase in a caption, palette from dark to light, beta of the noise, share of fine grain)
GROUNDS: dict[str, tuple[str, list[str], float, float]] = {
    "grass": ("on grass", ["#2f4a1c", "#4d6e28", "#6f8f3a", "#9aae5a"], 1.0, 0.55),
    "meadow": ("in a dry meadow", ["#6b5f2a", "#8f8440", "#b1a55c", "#cdc283"], 1.0, 0.5),
    "sand": ("on sand", ["#b5976a", "#cdb285", "#dcc69d", "#e8d8b7"], 1.6, 0.35),
    "soil": ("on brown soil", ["#3b2a1c", "#573f2a", "#715539", "#8b6c4b"], 1.2, 0.5),
    "asphalt": ("on asphalt", ["#4a4b4e", "#5d5e61", "#6f7073", "#828386"], 1.3, 0.55),
    "snow": ("on snow", ["#c3d0de", "#dbe4ec", "#ebf0f4", "#f8fafb"], 1.7, 0.2),
    "gravel": ("on gravel", ["#57524c", "#857e76", "#a49d94", "#cbc5bc"], 0.5, 0.85),
    "leaves": ("on fallen leaves", ["#4a2c17", "#8a4f1f", "#b5742b", "#cf9a4c"], 0.75, 0.6),
    "concrete": ("on concrete", ["#8d8b86", "#a19f99", "#b2b0aa", "#c2c0ba"], 1.7, 0.3),
    "wood": ("on a wooden floor", ["#6b4526", "#8a5c35", "#a87648", "#c19264"], 1.2, 0.2),
    "cloth": ("on a cloth", ["#7d3038", "#9a3f48", "#ab525a", "#bd6a70"], 1.9, 0.15),
}
_CLOTHS = [("#2f4a78", "#5b7bb0"), ("#7d3038", "#bd6a70"), ("#3f5d4a", "#7da58c")]
_CLOTHS += [("#8f7f5c", "#cfc2a0"), ("#4d4257", "#8b7e99")]


@dataclass(frozen=True, kw_only=True)
class Texture:
    """A ground or a backdrop and the words for it ("" where it has none)."""

    phrase: str
    levels: tuple[Pixels, ...]  # a ground's mipmap, finest first; a backdrop has one level


@dataclass(frozen=True, kw_only=True)
class Backgrounds:
    """The pool that every scene draws from."""

    grounds: tuple[Texture, ...]
    backdrops: tuple[Texture, ...]


def make_backgrounds(
    rng: np.random.Generator, size_px: int, cutouts: Sequence[Cutout], folder: Path | None
) -> Backgrounds:
    """Make the pool; `folder` holds photographs that take the place of the cut-outs' crops.

    Raises CapwrightError where `folder` holds no picture.
    """
    side = 2 * size_px
    photographs = _photographs(rng, side, cutouts, folder)
    grounds = [
        Texture(phrase=phrase, levels=_mipmap(_ground(rng, kind, side)))
        for kind, (phrase, *_) in GROUNDS.items()
        for _ in range(GROUNDS_PER_KIND)
    ]
    backdrops = [
        Texture(phrase=phrase, levels=(_to_pixels(draw(rng, size_px, side)),))
        for phrase, draw in BACKDROPS.items()
        for _ in range(BACKDROPS_PER_KIND)
    ]
    crops = [_crop(rng, photograph, side) for photograph in photographs]
    if folder is not None:  # the cut-outs' own crops are too plain to be a ground
        grounds += [Texture(phrase="", levels=_mipmap(_mirrored(crop))) for crop in crops]
    phrase = "" if folder else "before a blurred background"
    backdrops += [Texture(phrase=phrase, levels=(crop[:size_px],)) for crop in crops]
    return Backgrounds(grounds=tuple(grounds), backdrops=tuple(backdrops))


def draw_ground(rng: np.random.Generator, texture: Texture, camera: Camera, top: int) -> Field:
    """[size - top, size, 3] of the ground in perspective, from row `top` to the bottom."""
    size = camera.size_px
    side = texture.levels[0].shape[0]
    below = np.arange(top, size) + 0.5 - camera.horizon_px
    # At the bottom row one pixel of the picture covers `zoom` pixels of the texture.
    zoom = rng.uniform(0.6, 1.1)
    columns_per_px = zoom * (size - camera.horizon_px) / below
    lateral = np.arange(size) + 0.5 - size / 2
    offset = rng.integers(0, side, 2)
    along = zoom * camera.focal_px * (size - camera.horizon_px) / below
    # Between columns and (foreshortened) rows, the geometric mean decides how coarse to read.
    footprint = columns_per_px * np.sqrt(np.maximum(camera.focal_px / below, 1.0))
    level_of = np.clip(np.ceil(np.log2(np.maximum(footprint, 1e-6))), 0, len(texture.levels) - 1)
    picture = np.empty((size - top, size, 3), np.float32)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    for level, pixels in enumerate(texture.levels):
        rows = np.flatnonzero(level_of == level)
        if rows.size == 0:
            continue
        scale, edge = 0.5**level, pixels.shape[0]
        u = (lateral[None, :] * columns_per_px[rows, None] * flip + offset[0]) * scale
        v = (along[rows] + offset[1]) * scale
        picture[rows] = pixels[v.astype(np.int64)[:, None] % edge, u.astype(np.int64) % edge]
    return picture


def draw_backdrop(rng: np.random.Generator, texture: Texture, size: int, bottom: int) -> Field:
    """[bottom, size, 3] of a backdrop whose foot stands in row `bottom`."""
    pixels = texture.levels[0]
    left = rng.integers(0, pixels.shape[1] - size + 1)
    crop = pixels[pixels.shape[0] - bottom :, left : left + size]
    return (crop[:, ::-1] if rng.random() < 0.5 else crop).astype(np.float32)


def noise(
    rng: np.random.Generator, rows: int, columns: int, beta: float, aspect: float = 1
) -> Field:
    """[rows, columns] periodic 1/f^beta noise in 0..1, `aspect` times wider than tall."""
    spectrum = np.fft.rfft2(rng.standard_normal((rows, columns)))
    vertical = np.fft.fftfreq(rows)[:, None]
    horizontal = np.fft.rfftfreq(columns)[None, :] * aspect
    frequency = np.sqrt(vertical**2 + horizontal**2)
    frequency[0, 0] = 1.0
    spectrum *= frequency**-beta
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(rows, columns))
    return np.asarray(np.clip(0.5 + field / (5 * field.std()), 0, 1), np.float32)


def _colour(text: str) -> Field:
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)], np.float32)


def _paint(field: Field, palette: Sequence[str]) -> Field:
    """[h, w] in 0..1 -> [h, w, 3] colours, linear between the palette's."""
    colours = np.stack([_colour(text) for text in palette])
    stops = np.linspace(0, 1, len(palette))
    channels = [np.interp(field, stops, colours[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _ground(rng: np.random.Generator, kind: str, side: int) -> Pixels:
    _, palette, beta, grain = GROUNDS[kind]
    field = noise(rng, side, side, beta)
    if kind == "wood":
        field = _planks(rng, side)
    if kind == "cloth":
        palette = list(_CLOTHS[rng.integers(len(_CLOTHS))])
    fine = noise(rng, side, side, 0.35) - 0.5
    field = np.clip(field + grain * fine, 0, 1)
    picture = _paint(field, palette) * rng.uniform(0.88, 1.1)
    return _to_pixels(picture * rng.uniform(0.96, 1.04, 3).astype(np.float32))


def _planks(rng: np.random.Generator, side: int) -> Field:
    """Boards that run away from the viewer: grain along them, a dark gap between."""
    grain = noise(rng, side, side, 1.0, aspect=1 / 12)
    width = side // 8
    board = np.arange(side) // width
    tone = rng.uniform(-0.18, 0.18, side // width + 1).astype(np.float32)[board]
    gap = np.where(np.arange(side) % width < max(1, side // 128), 0.45, 0.0).astype(np.float32)
    return np.asarray(grain + (tone - gap)[None, :], np.float32)


def _clouds(rng: np.random.Generator, rows: int, columns: int) -> Field:
    sky = _gradient(rows, columns, ["#4f8fd0", "#86b6e2", "#c9deee"])
    field = noise(rng, rows, columns, 1.7, aspect=2.0)
    cover = np.clip((field - rng.uniform(0.42, 0.55)) * 4, 0, 1)[..., None]
    white = 225 + 30 * noise(rng, rows, columns, 1.8)[..., None]
    return np.asarray(sky * (1 - cover) + white * cover, np.float32)


def _clear_sky(rng: np.random.Generator, rows: int, columns: int) -> Field:
    blues = [["#3f7fc4", "#79aee0", "#cfe2f0"], ["#5b9bd8", "#a5cbe9", "#e6eef2"]]
    sky = _gradient(rows, columns, blues[rng.integers(2)])
    return sky + 8 * (noise(rng, rows, columns, 2.0)[..., None] - 0.5)


def _evening_sky(rng: np.random.Generator, rows: int, columns: int) -> Field:
    sky = _gradient(rows, columns, ["#2f3f6b", "#7a5f86", "#d98b64", "#f3c987"])
    bands = noise(rng, rows, columns, 1.8, aspect=5.0)[..., None] - 0.5
    return np.asarray(sky + 70 * bands, np.float32)


def _bushes(rng: np.random.Generator, rows: int, columns: int) -> Field:
    field = 0.7 * noise(rng, rows, columns, 1.2) + 0.3 * noise(rng, rows, columns, 0.7)
    dark = np.linspace(0.12, -0.12, rows, dtype=np.float32)[:, None]
    return _paint(np.clip(field + dark, 0, 1), ["#16240f", "#2c4519", "#4b6b2b", "#8aa65a"])


def _wall(rng: np.random.Generator, rows: int, columns: int) -> Field:
    tones = ["#d9d2c3", "#c9b79c", "#b8c4c2", "#dcd9d4", "#c79f86", "#a9b39a"]
    base = _colour(tones[rng.integers(len(tones))])
    light = 0.9 + 0.2 * noise(rng, rows, columns, 2.0)[..., None]
    return np.asarray(
        base * light + 10 * (noise(rng, rows, columns, 0.6)[..., None] - 0.5), np.float32
    )


def _bricks(rng: np.random.Generator, rows: int, columns: int) -> Field:
    high, wide = max(4, rows // 12), max(8, rows // 5)
    y, x = np.mgrid[:rows, :columns]
    course = y // high
    shifted = x + (course % 2) * (wide // 2)
    tone = rng.uniform(0, 1, (rows // high + 1, columns // wide + 2))[course, shifted // wide]
    field = 0.6 * tone + 0.4 * noise(rng, rows, columns, 0.9)
    picture = _paint(field.astype(np.float32), ["#74402f", "#96553f", "#b06f55"])
    mortar = (y % high < max(1, high // 7)) | (shifted % wide < max(1, high // 7))
    grey = 165 + 25 * noise(rng, rows, columns, 0.8)[..., None]
    return np.where(mortar[..., None], grey, picture).astype(np.float32)


def _hills(rng: np.random.Generator, rows: int, columns: int) -> Field:
    picture = _clouds(rng, rows, columns) if rng.random() < 0.5 else _clear_sky(rng, rows, columns)
    near_greens = [["#8fa5a8", "#748f7a", "#51703f"], ["#a3a9b8", "#8b8f8a", "#6f6a45"]][
        rng.integers(2)
    ]
    y = np.arange(rows)[:, None]
    for layer, tone in enumerate(near_greens):
        ridge = noise(rng, 4, columns, 1.6)[0] - 0.5
        top = rows * (0.62 + 0.12 * layer + 0.35 * ridge)
        shade = 0.92 + 0.16 * noise(rng, rows, columns, 1.2)[..., None]
        cover = np.clip(y - top[None, :], 0, 1)[..., None]
        picture = picture * (1 - cover) + _colour(tone) * shade * cover
    return np.asarray(picture, np.float32)


def _forest(rng: np.random.Generator, rows: int, columns: int) -> Field:
    streaks = noise(rng, rows, columns, 1.1, aspect=1 / 10)
    crown = noise(rng, rows, columns, 1.1)
    weight = np.linspace(0.2, 0.75, rows, dtype=np.float32)[:, None]
    field = weight * streaks + (1 - weight) * crown
    return _paint(field, ["#141c12", "#2b3a22", "#4a5836", "#8b9472"])


def _haze(rng: np.random.Generator, rows: int, columns: int) -> Field:
    greys = [["#b9c1c8", "#d3d8da", "#e3e3de"], ["#9aa5ae", "#bcc3c6", "#d0cfc8"]][rng.integers(2)]
    return _gradient(rows, columns, greys) + 26 * (noise(rng, rows, columns, 1.9)[..., None] - 0.5)


BACKDROPS: dict[str, Callable[[np.random.Generator, int, int], Field]] = {
    "under a cloudy sky": _clouds,
    "under a clear sky": _clear_sky,
    "under an evening sky": _evening_sky,
    "before green bushes": _bushes,
    "before a plain wall": _wall,
    "before a brick wall": _bricks,
    "before distant hills": _hills,
    "before a forest": _forest,
    "in grey haze": _haze,
}


def _gradient(rows: int, columns: int, palette: Sequence[str]) -> Field:
    """Top to bottom."""
    ramp = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    return np.repeat(_paint(ramp, palette), columns, axis=1)


def _photographs(
    rng: np.random.Generator, side: int, cutouts: Sequence[Cutout], folder: Path | None
) -> list[Image.Image]:
    if folder is None:
        chosen = rng.permutation(len(cutouts))[:PHOTOGRAPHS]
        return [_inside(cutouts[i], side) for i in chosen]
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise CapwrightError(
            f"no picture in --backgrounds {folder}: put .jpg, .png or .webp photographs there"
        )
    chosen = rng.permutation(len(paths))[: 4 * PHOTOGRAPHS]
    try:
        return [Image.open(paths[i]).convert("RGB") for i in sorted(chosen)]
    except OSError as error:
        raise CapwrightError(
            f"a picture in --backgrounds {folder} cannot be read ({error}): remove or replace it"
        ) from error


def _inside(cutout: Cutout, side: int) -> Image.Image:
    """The middle third of a cut-out, enlarged and blurred until only colours and light are left."""
    height, width = cutout.rgba.shape[:2]
    rgba = cutout.rgba[height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
    alpha = rgba[..., 3:] / 255.0
    mean = (rgba[..., :3] * alpha).sum((0, 1)) / max(alpha.sum(), 1e-6)
    filled = rgba[..., :3] * alpha + mean * (1 - alpha)
    muted = filled + 0.4 * (filled.mean(-1, keepdims=True) - filled)
    picture = Image.fromarray(muted.astype(np.uint8)).resize((12, 12), Image.Resampling.BOX)
    enlarged = picture.resize((side, side), Image.Resampling.BICUBIC)
    return enlarged.filter(ImageFilter.GaussianBlur(side / 40))


def _crop(rng: np.random.Generator, photograph: Image.Image, side: int) -> Pixels:
    """A random square of at least half the photograph, resized to [side, side]."""
    short = min(photograph.size)
    edge = max(1, int(short * rng.uniform(0.5, 1.0)))
    left = int(rng.integers(0, photograph.width - edge + 1))
    top = int(rng.integers(0, photograph.height - edge + 1))
    box = (left, top, left + edge, top + edge)
    return np.asarray(photograph.resize((side, side), Image.Resampling.BICUBIC, box=box))


def _mirrored(pixels: Pixels) -> Pixels:
    """Made periodic by reflection."""
    half = pixels[::2, ::2]
    wide = np.concatenate([half, half[:, ::-1]], axis=1)
    return np.concatenate([wide, wide[::-1]], axis=0)


def _mipmap(pixels: Pixels) -> tuple[Pixels, ...]:
    levels = [pixels]
    while levels[-1].shape[0] > 8 and len(levels) < 7:
        fine = levels[-1].astype(np.float32)
        edge = fine.shape[0] // 2
        mean = fine[: 2 * edge, : 2 * edge].reshape(edge, 2, edge, 2, 3).mean((1, 3))
        levels.append(_to_pixels(mean))
    return tuple(levels)


def _to_pixels(picture: Field) -> Pixels:
    return np.asarray(np.clip(picture + 0.5, 0, 255), np.uint8)
