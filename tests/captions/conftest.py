"""A tiny corpus of coloured squares, with alt text, some captions by people and features."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.corpus import index

torch.set_num_threads(1)

COLOURS = {
    "ruby": (220, 30, 30),
    "emerald": (30, 180, 60),
    "sapphire": (30, 60, 220),
    "amber": (240, 170, 20),
}
NAMES = tuple(COLOURS)
PER_SHARD, SHARDS = 24, 2


def picture(names: list[str], size: int = 64) -> Image.Image:
    """A grey picture with a square for each name, from left to right."""
    pixels = np.full((size, size, 3), 120, np.uint8)
    for place, name in enumerate(names):
        left = 4 + place * size // 2
        pixels[16:48, left : left + 24] = COLOURS[name]
    return Image.fromarray(pixels)


def sample(number: int) -> tuple[list[str], str, str]:
    """(names, alt text, caption by a person or "") of a sample."""
    rng = np.random.default_rng(number)
    names = [NAMES[i] for i in rng.permutation(4)[: 1 + number % 2]]
    alt = ["IMG_20.jpg", f"photo of a {names[0]}", f"a {names[-1]} - shop", f"a {names[0]}, 2015"]
    sides = ["on the left", "on the right"]
    full = ", ".join(f"a {name} {side}" for name, side in zip(names, sides, strict=False)) + "."
    return names, alt[number % 4], full.capitalize() if number % 2 else ""


def write_corpus(folder: Path) -> Path:
    """Two shards of the samples above."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(PER_SHARD):
                key = f"{shard:05d}{i:04d}"
                names, alt, human = sample(shard * PER_SHARD + i)
                jpeg = io.BytesIO()
                picture(names).save(jpeg, "JPEG", quality=95)
                members = {
                    "jpg": jpeg.getvalue(),
                    "txt": alt.encode(),
                    "json": json.dumps({"key": key, "human_caption": human}).encode(),
                }
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("captions") / "corpus")


@pytest.fixture(scope="session")
def featured(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with index and features; copy it before writing to it."""
    from capwright.captions import features

    work = tmp_path_factory.mktemp("featured") / "work"
    index.run(index.IndexConfig(corpus=str(corpus), work=work))
    features.run(features.FeaturesConfig(work=work, picture_size=64))
    return work


@pytest.fixture
def work(featured: Path, tmp_path: Path) -> Path:
    """A work folder of its own with index and features."""
    shutil.copytree(featured, tmp_path / "work")
    return tmp_path / "work"
