"""Toy scenes as real tars: a square on grey, whose colour gives its class and its distance."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("background", "apples", "berries")
COLOURS = {1: (220, 30, 30), 2: (30, 30, 220)}
DEPTH = {0: 4.0, 1: 1.0, 2: 16.0}
SIZE, PER_SHARD, SHARDS = 64, 12, 2


def toy(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture, classes and metres: a square whose colour gives its class and its distance."""
    rng = np.random.default_rng(number)
    seg = np.zeros((SIZE, SIZE), np.uint8)
    top, left = rng.integers(0, SIZE - 32, 2)
    seg[top : top + 32, left : left + 32] = 1 + number % 2
    pixels = np.full((SIZE, SIZE, 3), 128, np.uint8)
    for label, colour in COLOURS.items():
        pixels[seg == label] = colour
    return pixels, seg, np.vectorize(DEPTH.get)(seg).astype(np.float32)


def write_scenes(folder: Path, *, labels: bool = True) -> Path:
    """Two tars and classes.json."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                pixels, seg, depth = toy(i)
                members = {"png": png(pixels), "txt": b"a thing"}
                if labels:
                    buffer = io.BytesIO()
                    np.save(buffer, depth)
                    members |= {
                        "seg.png": png(seg), "depth.npy": buffer.getvalue(), "boxes.json": b"[]",
                    }  # fmt: skip
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{i:05d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    names = {"background": CLASSES[0], "classes": [{"name": name} for name in CLASSES[1:]]}
    (folder / "classes.json").write_text(json.dumps(names))
    return folder


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
