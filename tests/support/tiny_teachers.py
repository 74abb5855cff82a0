"""Real CLIP teachers of one layer, and a corpus of small pictures with two kinds of captions."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from capwright.corpus import index
from capwright.corpus.sidecars import write_sidecar
from capwright.models import towers
from corpus_files import tar_bytes

PICTURES, SHARDS = 12, 2


def teacher(folder: Path, seed: int, side: int = 32, width: int = 16) -> str:
    """An untrained teacher in a checkpoint folder; another seed is another teacher."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "embed_dim": width,
        "vision_cfg": {
            "image_size": side,
            "patch_size": 8,
            "width": 16,
            "layers": 1,
            "head_width": 8,
        },
        "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = towers.build(config)
    save_file(dict(model.state_dict()), folder / towers.WEIGHTS_FILE)
    saved = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": {"size": side}}
    (folder / towers.CONFIG_FILE).write_text(json.dumps(saved))
    return str(folder)


def picture(number: int) -> bytes:
    """A PNG of its own size and colours."""
    rng = np.random.default_rng(number)
    size = (48 + number, 60 - number, 3)
    paint = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
    image = Image.fromarray(paint).resize(size[:2], Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def uid(number: int) -> str:
    """The uid of a picture, as DataComp writes them."""
    return f"{number:032x}"


def write_corpus(folder: Path, work: Path) -> None:
    """Tars of pictures with alt text (but for number 1), their index, and a stage of captions."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        members = []
        for i in range(shard, PICTURES, SHARDS):
            alt = "" if i == 1 else f"alt text {i}"
            fields = json.dumps({"uid": uid(i), "sha256": f"{i:064x}"})
            members += [
                (f"{i:04d}.png", picture(i)),
                (f"{i:04d}.txt", alt.encode()),
                (f"{i:04d}.json", fields.encode()),
            ]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    index.run(index.IndexConfig(corpus=str(folder), work=work))
    for name in index.index_shards(work):
        rows = [
            {"key": key, "source": "tiny", "text": f"{what} of picture {key}"}
            for key in index.load_shard(work, name, ["key"])["key"].to_pylist()
            for what in ("a drawing", "a photo")
        ]
        write_sidecar(work / "captions" / "describe-tiny", name, rows)
