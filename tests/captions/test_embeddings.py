import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from capwright.captions import embeddings
from capwright.captions.dedup import DedupConfig, run
from capwright.corpus.index import IndexConfig
from capwright.corpus.index import run as run_index
from capwright.corpus.sidecars import read_sidecars
from capwright.models import towers
from corpus_files import tar_bytes


def png(seed: int, noise: int = 0) -> bytes:
    """A picture of a few coloured cells, with some noise on it."""
    rng = np.random.default_rng(seed)
    cells = Image.fromarray(rng.integers(40, 216, (4, 4, 3), dtype=np.uint8))
    pixels = np.asarray(cells.resize((64, 64), Image.Resampling.NEAREST)).astype(int)
    pixels += np.random.default_rng(noise).integers(-noise, noise + 1, pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def corpus(folder: Path, shards: dict[str, list[bytes]]) -> Path:
    """A work folder with the index of tars of these pictures."""
    (folder / "tars").mkdir(parents=True)
    for name, pictures in shards.items():
        members = [(f"{name}{i}.png", data) for i, data in enumerate(pictures)]
        (folder / "tars" / f"{name}.tar").write_bytes(tar_bytes(members))
    run_index(IndexConfig(corpus=str(folder / "tars"), work=folder / "work"))
    return folder / "work"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tower of two layers whose embedding is of the picture, as any untrained one's is a bit."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    config: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 32,
            "layers": 2,
            "head_width": 8,
        },
        "text_cfg": {
            "vocab_size": 49408,
            "context_length": 16,
            "width": 8,
            "heads": 2,
            "layers": 1,
        },
    }
    tower = towers.build(config)
    save_file(dict(tower.state_dict()), folder / towers.WEIGHTS_FILE)
    saved = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": {"size": 32}}
    (folder / towers.CONFIG_FILE).write_text(json.dumps(saved))
    return str(folder)


def found(work: Path, model: str, **options: Any) -> dict[str, dict[str, Any]]:
    run(DedupConfig(work=work, way="embeddings", model=model, min_similarity=0.9995, **options))
    rows = read_sidecars(work / "captions" / "dedup").to_pylist()
    return {row["key"]: row for row in rows}


@pytest.mark.parametrize("flat", [50_000, 1])
def test_near_embeddings_are_duplicates(
    tmp_path: Path, model: str, flat: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "FLAT", flat)
    shards = {"a": [png(0), png(1), png(0)], "b": [png(0, 3), png(2), png(3), png(1, 3)]}
    work = corpus(tmp_path / "corpus", shards)
    evaluation = corpus(tmp_path / "eval", {"e": [png(9), png(2, 2)]})
    rows = found(work, model, against=evaluation)
    assert {key: (row["kind"], row["duplicate_of"]) for key, row in rows.items()} == {
        "a0": (None, None), "a1": (None, None), "a2": ("exact", "a/a0"),
        "b0": ("near", "a/a0"), "b1": ("evaluation", "e/e1"), "b2": (None, None),
        "b3": ("near", "a/a1"),
    }  # fmt: skip
    assert 0 < rows["b0"]["distance"] <= 0.0005


def test_embeddings_are_computed_once(tmp_path: Path, model: str) -> None:
    work = corpus(tmp_path, {"a": [png(0)], "b": [png(1)]})
    folder = embeddings.embed_corpus(work, model=model, batch_size=2)
    vectors = np.load(folder / "a.npy")
    assert vectors.dtype == np.float16 and np.linalg.norm(vectors.astype(float)) == pytest.approx(
        1, abs=1e-3
    )
    np.save(folder / "a.npy", vectors * 0)
    (folder / "b.npy").unlink()
    embeddings.embed_corpus(work, model=model, batch_size=2)
    assert not np.load(folder / "a.npy").any() and np.load(folder / "b.npy").any()
