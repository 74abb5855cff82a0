"""Writes scenes as WebDataset tars in img2dataset's form, with labels beside each picture.

Writes DIR/SHARD.tar (per sample KEY.jpg .txt .json .seg.png .depth.npy .boxes.json) and
DIR/oracle/SHARD.parquet (the full description of every sample, which no stage reads unless it is
told to). A tar's header fields are fixed (time 0, user 0), so equal scenes are equal bytes. The
parquet is complete before the tar gets its name: a tar that is there is done.
"""

import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from capwright.core.files import atomic_path
from capwright.corpus.sidecars import has_sidecar, write_sidecar
from capwright.datasets.scenes.backgrounds import make_backgrounds
from capwright.datasets.scenes.captions import alt_text, full_caption
from capwright.datasets.scenes.compose import Composer, Scene
from capwright.datasets.scenes.cutouts import load_cutouts

KEYS_PER_SHARD = 10_000  # as img2dataset numbers: the key is shard * 10,000 + place in the shard
JPEG_QUALITY = 90
_POOL, _SCENE, _TEXT = 0, 1, 2  # separate random streams, so that one may change alone


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One tar to write; picklable, so that any process can do it."""

    out: Path
    shard: int
    first: int  # index of its first scene
    count: int
    size: int
    seed: int
    cutouts: Path | None
    backgrounds: Path | None
    holdout: bool
    per_class: int | None
    max_objects: int
    human_fraction: float

    @property
    def name(self) -> str:
        """File name without extension."""
        return f"{self.shard:05d}"


def is_done(task: ShardTask) -> bool:
    """Whether tar and oracle are both there."""
    return (task.out / f"{task.name}.tar").exists() and has_sidecar(task.out / "oracle", task.name)


def write_shard(task: ShardTask) -> int:
    """Compose and write one shard; returns how many things its scenes show."""
    composer = composer_for(
        task.size,
        task.seed,
        task.cutouts,
        task.backgrounds,
        task.holdout,
        task.per_class,
        task.max_objects,
    )
    oracle: list[dict[str, Any]] = []
    things = 0
    with (
        atomic_path(task.out / f"{task.name}.tar") as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for place in range(task.count):
            key = f"{task.shard * KEYS_PER_SHARD + place:09d}"
            members, caption, n_things = _sample(task, composer, task.first + place, key)
            things += n_things
            oracle.append({"key": key, "source": "oracle", "text": caption, "seed": task.seed})
            for suffix, data in members.items():
                _add(tar, f"{key}.{suffix}", data)
        write_sidecar(task.out / "oracle", task.name, oracle)
    return things


@functools.lru_cache(maxsize=1)
def composer_for(
    size: int,
    seed: int,
    cutouts: Path | None,
    backgrounds: Path | None,
    holdout: bool,
    per_class: int | None,
    max_objects: int,
) -> Composer:
    """What a process loads once: cut-outs and the pool of backgrounds."""
    found = load_cutouts(cutouts, per_class)
    rng = np.random.default_rng([seed, _POOL])
    used = found.unseen if holdout else found.seen
    return Composer(
        classes=found.classes,
        cutouts=used,
        backgrounds=make_backgrounds(rng, size, used, backgrounds),
        size_px=size,
        max_objects=max_objects,
    )


def is_human(seed: int, index: int, fraction: float) -> bool:
    """Whether this scene is one of those that a person has described."""
    hashed = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(hashed[:8], "big") / 2**64 < fraction


def _sample(
    task: ShardTask, composer: Composer, index: int, key: str
) -> tuple[dict[str, bytes], str, int]:
    """(members by suffix, full description, number of things) of one scene."""
    scene = composer.compose(np.random.default_rng([task.seed, _SCENE, index]))
    rng = np.random.default_rng([task.seed, _TEXT, index])
    class_names = [one.name for one in composer.classes]
    caption = full_caption(rng, scene, class_names)
    present = [thing.cutout.caption for thing in scene.things]
    alt = alt_text(rng, present, lambda: composer.draw_anchor_cutout(rng).caption)
    jpg = _jpeg(scene.image)
    record = _record(key, alt, task.size, hashlib.sha256(jpg).hexdigest())
    if is_human(task.seed, index, task.human_fraction):
        record["human_caption"] = caption
    members = {
        "jpg": jpg,
        "txt": alt.encode(),
        "json": _json(record),
        "seg.png": _png(scene.seg),
        "depth.npy": _npy(scene.depth_m),
        "boxes.json": _json(_boxes(scene, class_names)),
    }
    return members, caption, len(scene.things)


def _record(key: str, alt: str, size: int, sha256: str) -> dict[str, Any]:
    """The fields that img2dataset writes."""
    return {
        "url": f"https://scenes.example/{key}.jpg",
        "caption": alt,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": size,
        "height": size,
        "original_width": size,
        "original_height": size,
        "exif": "{}",
        "sha256": sha256,
    }


def _boxes(scene: Scene, class_names: list[str]) -> list[dict[str, Any]]:
    """Nearest last."""
    return [
        {
            "class": class_names[thing.cutout.class_id],
            "name": thing.cutout.name,
            "caption": thing.cutout.caption,
            "box": list(thing.box),
            "depth_m": round(thing.stand.depth_m, 4),
            "visible": round(thing.visible, 3),
        }
        for thing in scene.things
    ]


def _jpeg(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _png(seg: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(seg).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _npy(depth: np.ndarray[Any, np.dtype[np.float16]]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, depth, allow_pickle=False)
    return buffer.getvalue()


def _json(value: Mapping[str, Any] | list[dict[str, Any]]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # its time, user and mode are the same everywhere
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))
