"""Toy scenes: a coloured square on grey, whose colour gives its class and its distance."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.corpus.sidecars import write_sidecar
from capwright.datasets.labelled import LabelledScenes, SceneObject
from capwright.evaluate.encoder import Encoder, load_encoder

SIZE = 32
CLASSES = ("background", "apples", "berries")
COLOURS = {1: (220, 30, 30), 2: (30, 30, 220)}
DEPTH = {0: 4.0, 1: 1.0, 2: 16.0}
NAMES = {1: "a red apple", 2: "a blue berry"}

TINY = {
    "embed_dim": 16,
    "vision_cfg": {
        "timm_model_name": "capwright_vit_nano_s8",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": SIZE,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    return TINY


@pytest.fixture
def encoder() -> Encoder:
    return load_encoder(None, model=TINY, seed=0)


@pytest.fixture(scope="session")
def toy_scenes() -> Callable[..., LabelledScenes]:
    return make_scenes


def make_scenes(count: int, seed: int = 0) -> LabelledScenes:
    rng = np.random.default_rng(seed)
    images = np.full((count, SIZE, SIZE, 3), 128, np.uint8)
    seg = np.zeros((count, SIZE, SIZE), np.uint8)
    objects = []
    for i in range(count):
        number = 1 + i % 2
        top, left = rng.integers(0, SIZE - 16, 2)
        seg[i, top : top + 16, left : left + 16] = number
        images[i][seg[i] > 0] = COLOURS[number]
        placed = SceneObject(
            class_name=CLASSES[number],
            name=f"thing{number}",
            caption=NAMES[number],
            box=(left, top, left + 16, top + 16),
            depth_m=DEPTH[number],
        )
        objects.append((placed,))
    return LabelledScenes(
        images_NSS3=images,
        seg_NSS=seg,
        depth_NSS=np.vectorize(DEPTH.get)(seg).astype(np.float32),
        classes=CLASSES,
        objects=tuple(objects),
        keys=tuple(f"{i:09d}" for i in range(count)),
    )


@pytest.fixture(scope="session")
def toy_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of toy scenes on disk, as `capwright scenes` writes them."""
    root = tmp_path_factory.mktemp("toys")
    for name, count, seed in (("train", 24, 0), ("seen", 8, 1), ("unseen", 8, 2)):
        write_scenes(root / name, make_scenes(count, seed))
    return {name: root / name for name in ("train", "seen", "unseen")}


def write_scenes(folder: Path, scenes: LabelledScenes) -> None:
    folder.mkdir(parents=True)
    named = {"classes": [{"name": c} for c in CLASSES[1:]], "background": CLASSES[0]}
    (folder / "classes.json").write_text(json.dumps(named))
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for i, key in enumerate(scenes.keys):
            for suffix, content in members(scenes, i):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    write_sidecar(folder / "oracle", "00000", _captions(scenes))


def members(scenes: LabelledScenes, i: int) -> Sequence[tuple[str, bytes]]:
    depth = io.BytesIO()
    np.save(depth, scenes.depth_NSS[i].astype(np.float16))
    boxes = [
        {"class": o.class_name, "name": o.name, "caption": o.caption, "depth_m": o.depth_m}
        | {"box": [int(side) for side in o.box]}
        for o in scenes.objects[i]
    ]
    return (
        ("jpg", _picture(scenes.images_NSS3[i], "JPEG")),
        ("txt", b"IMG_0001"),
        ("seg.png", _picture(scenes.seg_NSS[i], "PNG")),
        ("depth.npy", depth.getvalue()),
        ("boxes.json", json.dumps(boxes).encode()),
    )


def _picture(pixels: Any, form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def _captions(scenes: LabelledScenes) -> list[dict[str, str]]:
    return [
        {"key": key, "source": "oracle", "text": f"{objects[0].caption} on grey"}
        for key, objects in zip(scenes.keys, scenes.objects, strict=True)
    ]
