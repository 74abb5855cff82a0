"""Toy scenes: a coloured square on grey, whose colour gives its class and its distance."""

import io
import itertools
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.corpus.sidecars import write_sidecar
from capwright.datasets.labelled import LabelledScenes, SceneObject
from capwright.evaluate.classification import class_vectors
from capwright.evaluate.embeddings import Embeddings
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


@dataclass(frozen=True, kw_only=True)
class ToyItem:
    """One picture with the labels of every kind of set."""

    key: str
    image: Image.Image
    label: int = 0
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ToySet:
    """What the data sets of `capwright.datasets` look like from outside."""

    name: str
    items: tuple[ToyItem, ...]
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> ToyItem:
        return self.items[index]


def toy_pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Smooth noise of several sizes, so that resizing and cropping matter."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3)).astype(np.uint8))
        size = tuple(int(side) for side in rng.integers(36, 72, 2))
        pictures.append(small.resize(size, Image.Resampling.BICUBIC))
    return pictures


TOY_CLASSES = ("red bus", "two dogs", "wooden table", "jug of water", "old man", "tree", "sea")
TOY_TEMPLATES = ("a photo of a {c}", "the {c}")
WORDS = ("red", "bus", "dog", "table", "water", "man", "tree", "sea", "old", "two")


def toy_classification(encoder: Encoder, count: int = 40, classes: int = 7) -> ToySet:
    """Labels are what the encoder says of three pictures out of four."""
    pictures, names = toy_pictures(count), TOY_CLASSES[:classes]
    images = Embeddings(encoder).image_embeddings(pictures, count)
    templates = [template.replace("{c}", "{}") for template in TOY_TEMPLATES]
    texts = class_vectors(encoder, [[name] for name in names], templates)
    best = (images @ texts.T).argsort(dim=1, descending=True)
    labels = [int(best[i, 1 if i % 4 == 0 else 0]) for i in range(count)]
    rows = zip(pictures, labels, strict=True)
    return ToySet(
        name="toys",
        classes=names,
        templates=TOY_TEMPLATES,
        items=tuple(ToyItem(key=f"{i:04d}", image=p, label=c) for i, (p, c) in enumerate(rows)),
    )


def toy_captions(count: int = 30) -> ToySet:
    """One to three captions of distinct words for each picture."""
    texts = iter(" ".join(words) for words in itertools.permutations(WORDS, 3))
    return ToySet(
        name="toy-captions",
        items=tuple(
            ToyItem(
                key=f"{i:04d}",
                image=picture,
                captions=tuple(itertools.islice(texts, 1 + i % 3)),
            )
            for i, picture in enumerate(toy_pictures(count))
        ),
    )


@pytest.fixture
def classification_set(encoder: Encoder) -> ToySet:
    return toy_classification(encoder)


@pytest.fixture
def caption_set() -> ToySet:
    return toy_captions()
