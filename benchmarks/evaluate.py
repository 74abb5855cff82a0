"""Zero-shot classification and retrieval of the same pictures, against clip_benchmark.

Run: python benchmarks/evaluate.py. 256 JPEGs of 500 x 375 in WebDataset form, once with classes
(20, 8 templates) and once with five captions each; a CLIP of open_clip's ViT with 6 blocks of width
256 at 224 pixels and random weights. Both read the same tars, use the same preprocessing, float32
and the same number of processes or threads, by turns in this process; each loads the model itself.
The last line is JSON with `ratio` (of the median seconds), `target`, `ok`, and the largest
difference of any metric, of which 0.01 is allowed.
"""

import contextlib
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import clip_benchmark.cli
import clip_benchmark.metrics.zeroshot_classification as measured
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from capwright.core.files import write_json
from capwright.evaluate.results import read_results
from capwright.evaluate.suite import SuiteConfig, label_of, run
from capwright.models import towers

PICTURES, SHARDS, ROUNDS, BATCH, TARGET, MOST_DIFFERENCE = 256, 4, 3, 64, 1.5, 0.01
THINGS = ("bus", "dog", "table", "jug", "man", "tree", "lake", "chair", "horse", "lamp")
CLASSES = [f"{colour} {thing}" for thing in THINGS for colour in ("red", "old")]
TEMPLATES = [f"{start} {{c}}" for start in (
    "a photo of a", "a picture of a", "a bad photo of a", "a close-up of a", "the", "a small",
    "a drawing of a", "one more photo of the",
)]  # fmt: skip
CONFIG = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 256, "layers": 6},
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6,
    },
}  # fmt: skip


def accuracy(output: Any, target: Any, topk: Any = (1,)) -> list[float]:
    """clip_benchmark's own fails with NumPy 2.4 and later (its issue 147)."""
    hit = output.topk(max(topk)).indices == target[:, None]
    return [float(hit[:, :k].any(dim=1).float().mean()) for k in topk]


def picture(seed: int) -> bytes:
    """A JPEG of 500 x 375 with the spectrum of a photograph."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None])
    frequency[0, 0] = 1
    noise = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    pixels = np.moveaxis(np.fft.irfft2(noise / frequency**1.5, (375, 500)), 0, -1)
    pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 120
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_set(folder: Path, pictures: list[bytes], suffix: str, labels: list[str]) -> None:
    """The pictures in SHARDS tars, in CLIP_benchmark's form."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(str(SHARDS))
    for shard in range(SHARDS):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for i in range(shard * PICTURES // SHARDS, (shard + 1) * PICTURES // SHARDS):
                for ending, data in (("jpg", pictures[i]), (suffix, labels[i].encode())):
                    member = tarfile.TarInfo(f"{i:05d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_sets(root: Path) -> None:
    """`things` with classes and `said` with captions."""
    rng = np.random.default_rng(0)
    pictures = [picture(seed) for seed in range(PICTURES)]
    labels = [str(label) for label in rng.integers(0, len(CLASSES), PICTURES)]
    write_set(root / "things", pictures, "cls", labels)
    (root / "things" / "classnames.txt").write_text("\n".join(CLASSES))
    templates = root / "things" / "zeroshot_classification_templates.txt"
    templates.write_text("\n".join(TEMPLATES))
    captions = [
        "\n".join(
            f"{TEMPLATES[rng.integers(8)].format(c=CLASSES[rng.integers(20)])} number {i} of {j}"
            for j in range(5)
        )
        for i in range(PICTURES)
    ]
    write_set(root / "said", pictures, "txt", captions)
    (root / "said" / "dataset_type.txt").write_text("retrieval")


def write_model(folder: Path) -> None:
    """A checkpoint folder with random weights."""
    folder.mkdir()
    torch.manual_seed(0)
    config = towers.model_config(CONFIG)
    save_file(towers.build(config).state_dict(), folder / towers.WEIGHTS_FILE)
    preprocess = towers.preprocess_config(config)
    write_json(folder / towers.CONFIG_FILE, {"model_cfg": config, "preprocess_cfg": preprocess})


def theirs(root: Path, model: Path, out: Path) -> dict[str, float]:
    """Both tasks, one after the other."""
    metrics: dict[str, float] = {}
    for name, task in (("things", "classification"), ("said", "retrieval")):
        sys.argv = [
            "clip_benchmark", "eval", "--dataset", f"wds/{name}", "--dataset_root",
            str(root / name), "--task", f"zeroshot_{task}", "--model", f"local-dir:{model}",
            "--pretrained", "x", "--recall_k", "1", "5", "10", "--output", str(out / "theirs.json"),
            "--batch_size", str(BATCH), "--num_workers", str(os.cpu_count()), "--no_amp", "--quiet",
        ]  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            clip_benchmark.cli.main()
        metrics |= json.loads((out / "theirs.json").read_text())["metrics"]
    return metrics


def ours(root: Path, model: Path, out: Path) -> dict[str, float | None]:
    """The suite, from nothing."""
    config = SuiteConfig(models=(str(model),), data=root, out=out, batch=BATCH, device="cpu")
    with contextlib.redirect_stderr(io.StringIO()):
        assert run(config).measured == 2
    metrics: dict[str, float | None] = {}
    for file in (out / label_of(str(model))).glob("*.json"):
        metrics |= read_results(file)[0].metrics
    return metrics


def main() -> None:
    """Measure both by turns and print the ratio."""
    warnings.simplefilter("ignore")
    measured.accuracy = accuracy
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sets(folder / "sets")
        write_model(folder / "model")
        for number in range(ROUNDS):
            out = folder / f"round{number}"
            out.mkdir()
            began = time.perf_counter()
            one = theirs(folder / "sets", folder / "model", out)
            between = time.perf_counter()
            other = ours(folder / "sets", folder / "model", out)
            seconds["theirs"].append(between - began)
            seconds["ours"].append(time.perf_counter() - between)
    difference = max(abs(one[name] - (other[name] or 0.0)) for name in one)
    median = {who: statistics.median(times) for who, times in seconds.items()}
    ratio = median["theirs"] / median["ours"]
    report = {
        "name": "evaluate",
        "ratio": round(ratio, 2),
        "target": TARGET,
        "ok": ratio >= TARGET and difference <= MOST_DIFFERENCE,
        "seconds": round(median["ours"], 2),
        "peer_seconds": round(median["theirs"], 2),
        "largest_difference": round(difference, 6),
        "pictures": PICTURES,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
