"""A tiny real corpus: tars of coloured pictures whose captions name the colours, and its index."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.corpus import index, sidecars
from capwright.pretrain.config import CaptionSource, PretrainConfig

COLOURS = ("red", "green", "blue", "yellow")
SIDE = 16

TINY_MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": SIDE,
        "patch_size": 4,
        "width": 16,
        "layers": 1,
        "head_width": 8,
    },
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}


def write_corpus(folder: Path, work: Path, pictures: int = 24) -> None:
    """Two tars, their index, and a stage "described" for all but the first three pictures."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard, pictures, 2):
                colour = COLOURS[i % 4]
                paint = np.array([i % 4 in (0, 3), i % 4 in (1, 3), i % 4 == 2]) * 200
                noise = rng.integers(0, 55, (SIDE, SIDE, 3))
                picture = io.BytesIO()
                Image.fromarray((paint + noise).astype(np.uint8)).save(picture, "PNG")
                text = "" if i in (1, 5) else f"buy {colour} {'one ' * (i % 5)}now"
                for suffix, data in (("png", picture.getvalue()), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    index.run(index.IndexConfig(corpus=str(folder), work=work))
    table = index.load_index(work)
    for name in index.index_shards(work):
        rows = [
            {
                "key": row["key"],
                "source": source,
                "text": f"a {COLOURS[int(row['key']) % 4]} {what}",
            }
            for row in table.to_pylist()
            if row["shard"] == name and int(row["key"]) > 2
            for source, what in (("beam", "square"), ("top-p", "thing"))
        ]
        sidecars.write_sidecar(work / "captions" / "described", name, rows)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of the tiny corpus."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "tars", folder / "work")
    return folder / "work"


@pytest.fixture(scope="session")
def tiny_model() -> dict[str, Any]:
    """open_clip's own towers, as small as they get."""
    return TINY_MODEL


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., PretrainConfig]:
    """Makes plans: `tiny_config(work, out, **changes)`."""
    return _tiny_config


def _tiny_config(work: Path, out: Path, **changes: Any) -> PretrainConfig:
    """Six steps of eight samples on the tiny corpus, with a checkpoint after every second step."""
    described = CaptionSource(name="described", folder=work / "captions" / "described")
    settings: dict[str, Any] = {
        "out": out,
        "work": work,
        "captions": (described, CaptionSource(name="alt", probability=0.5)),
        "model": TINY_MODEL,
        "vocabulary_min_count": 1,
        "image_size": SIDE,
        "batch_size": 8,
        "samples": 48,
        "warmup_samples": 8,
        "checkpoint_samples": 16,
        "precision": "fp32",
        "threads": 1,
        "log_every_steps": 1,
    }
    return PretrainConfig(**(settings | changes))
