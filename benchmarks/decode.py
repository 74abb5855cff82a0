"""Read and decode 1024 x 768 JPEGs to 224 px, against webdataset with Pillow and torchvision.

Run: python benchmarks/decode.py. One core, the same tar, both ways by turns in one run; ours reads
by the index's byte offsets. The pictures are noise with the spectrum of a photograph (amplitude
1/f^1.5, JPEG quality 90, about 190 kB each). The last line is JSON with `ratio` (of the medians),
`target`, `ok`, and the mean difference of the two pictures in grey levels, of which at most 2 are
allowed.
"""

import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torchvision.transforms as transforms
import webdataset
from PIL import Image

from capwright.corpus.index import IndexConfig, load_index, run
from capwright.corpus.pictures import decode_rgb
from capwright.corpus.places import ByteReader, places

PICTURES, ROUNDS, SIZE, TARGET, MOST_GREY = 64, 7, 224, 2.5, 2.0


def photograph(seed: int) -> bytes:
    """A JPEG of 1024 x 768."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(768)[:, None], np.fft.rfftfreq(1024)[None])
    frequency[0, 0] = 1
    noise = rng.normal(size=(4, *frequency.shape)) + 1j * rng.normal(size=(4, *frequency.shape))
    grey, *colour = np.fft.irfft2(noise / frequency**1.5, (768, 1024))
    pixels = np.stack([grey + 0.4 * channel for channel in colour], -1)
    pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 120
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path: Path) -> int:
    """Returns the mean size of a picture in bytes."""
    total = 0
    with tarfile.open(path, "w") as tar:
        for number in range(PICTURES):
            data = photograph(number)
            total += len(data)
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return total // PICTURES


def theirs(tar: Path) -> list[np.ndarray]:
    """webdataset, Pillow, torchvision's usual transforms."""
    crop = transforms.Compose(
        [
            transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZE),
        ]
    )
    data = webdataset.WebDataset(str(tar), shardshuffle=False).decode("pilrgb").to_tuple("jpg")
    return [np.asarray(crop(image)) for (image,) in data]


def ours(work: Path) -> list[np.ndarray]:
    """By the index's offsets, with scaled decode."""
    with ByteReader() as reader:
        return [decode_rgb(reader.read(*p), size=SIZE) for p in places(load_index(work))]


def main() -> None:
    """Measure both by turns and print the ratio."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_tar(folder / "00000.tar")
        run(IndexConfig(corpus=str(folder), work=folder / "work"))
        seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
        for _ in range(ROUNDS):
            began = time.perf_counter()
            one = theirs(folder / "00000.tar")
            between = time.perf_counter()
            other = ours(folder / "work")
            seconds["theirs"].append(between - began)
            seconds["ours"].append(time.perf_counter() - between)
    pairs = zip(one, other, strict=True)
    grey = float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs]))
    rate = {who: PICTURES / statistics.median(times) for who, times in seconds.items()}
    ratio = rate["ours"] / rate["theirs"]
    report = {
        "name": "decode",
        "ratio": round(ratio, 2),
        "target": TARGET,
        "ok": ratio >= TARGET and grey <= MOST_GREY,
        "pictures_per_second": round(rate["ours"], 1),
        "peer_pictures_per_second": round(rate["theirs"], 1),
        "grey_levels": round(grey, 2),
        "picture_bytes": size,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
