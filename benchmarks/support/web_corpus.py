"""A small web corpus for benchmarks: photograph-like JPEGs and captions in WebDataset tars.

A picture is noise with the spectrum of a photograph (amplitude 1/f^1.5), tinted in each quarter by
one of twelve colours. Its caption names the colours of the quarters in reading order and goes on
with common words, so that there is something to learn. Pictures are square, since loops differ in
what they cut from others. Lengths follow a gamma distribution like
those of recaptioned corpora: 18 tokens on average with start and end, few above 40.
"""

import io
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

WIDTH, HEIGHT, QUALITY = 448, 448, 90  # pixels; of JPEG
NOISES = 32  # different fields of noise, shifted for every picture
MEAN_TOKENS, SHAPE, LEAST, CONTEXT = 18.0, 4.0, 4, 77
COLOURS = {
    "red": (200, 40, 40), "green": (50, 160, 60), "blue": (50, 70, 200), "yellow": (225, 205, 60),
    "orange": (235, 140, 40), "purple": (130, 60, 160), "pink": (235, 150, 180),
    "brown": (120, 80, 50), "white": (235, 235, 235), "black": (25, 25, 25),
    "grey": (128, 128, 128), "gold": (190, 150, 70),
}  # fmt: skip
WORDS = [
    "a", "photo", "of", "the", "old", "house", "near", "water", "with", "two", "people", "and",
    "small", "trees", "on", "a", "hill", "in", "summer", "light", "dog", "cat", "bird", "boat",
    "car", "road", "street", "field", "stone", "wood", "table", "chair", "window", "door",
    "garden", "river", "lake", "sky", "cloud", "snow", "rain", "sun", "man", "woman", "child",
    "hand", "hat", "dress", "book", "cup", "plate", "bread", "fruit", "flower", "leaf",
]  # fmt: skip


@lru_cache
def noise(number: int) -> npt.NDArray[np.float64]:
    """Noise as a photograph's, float [H, W, 3], around 0; it tiles."""
    rng = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = np.inf
    waves = rng.normal(size=(4, *frequency.shape)) + 1j * rng.normal(size=(4, *frequency.shape))
    grey, *colour = np.fft.irfft2(waves / frequency**1.5, (HEIGHT, WIDTH))
    pixels_HW3 = np.stack([grey + 0.4 * channel for channel in colour], -1)
    return np.asarray(pixels_HW3 / pixels_HW3.std() * 35)


def photograph(rng: np.random.Generator, tint_223: npt.NDArray[np.uint8]) -> bytes:
    """A JPEG whose quarters have the colours `tint_223`."""
    shift = rng.integers([HEIGHT, WIDTH])
    pixels_HW3 = np.roll(noise(int(rng.integers(NOISES))), shift, (0, 1))
    quarters = Image.fromarray(tint_223).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    tinted_HW3 = (pixels_HW3 + np.asarray(quarters)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(tinted_HW3).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def sample(seed: int) -> tuple[bytes, str]:
    """The picture and the caption with this number."""
    rng = np.random.default_rng(seed)
    names = rng.choice([*COLOURS], 4)
    tint_223 = np.array([COLOURS[name] for name in names], np.uint8).reshape(2, 2, 3)
    length = rng.gamma(SHAPE, (MEAN_TOKENS - LEAST) / SHAPE) + LEAST  # with start and end
    words = min(round(length), CONTEXT) - 2
    caption = [*names[:words], *rng.choice(WORDS, max(0, words - 4))]
    return photograph(rng, tint_223), " ".join(caption)


def write_tars(folder: Path, numbers: Sequence[int], per_tar: int) -> list[str]:
    """Write the samples with these numbers as img2dataset does; returns their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = []
    for first in range(0, len(numbers), per_tar):
        with tarfile.open(folder / f"{first // per_tar:05d}.tar", "w") as tar:
            for number in numbers[first : first + per_tar]:
                picture, caption = sample(number)
                captions.append(caption)
                for suffix, data in (("jpg", picture), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return captions
