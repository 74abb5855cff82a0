"""A made-up run folder with every part that a report can show."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = ["background", "birds", "cars", "flowers", "fruit", "horses", "insects", "fish"]
HOSTILE = '<script>alert("x")</script> toucan & <img src=http://evil.test/x onerror=alert(1)>'
ARMS: dict[str, dict[str, Any]] = {
    "alt": {"miou": 0.1524, "miou_interval": [0.1431, 0.1617], "rmse": 1.4612,
            "rmse_interval": [1.431, 1.491], "absrel_objects": 0.4123, "miou_unseen": 0.0912,
            "rmse_unseen": 1.612, "retrieval_r1": 0.084, "samples_seen": 76800, "seconds": 141.2},
    "quality": {"miou": 0.2661, "miou_interval": [0.2572, 0.275], "rmse": 1.2043,
                "rmse_interval": [1.181, 1.2276], "absrel_objects": 0.2987, "miou_unseen": 0.1431,
                "rmse_unseen": 1.471, "retrieval_r1": 0.231, "samples_seen": 76800,
                "seconds": 143.0},
    "scratch": {"miou": 0.0653, "miou_interval": [0.0612, 0.0694], "rmse": 1.713,
                "rmse_interval": [1.69, 1.736], "absrel_objects": 0.5311, "miou_unseen": 0.0611,
                "rmse_unseen": 1.742, "retrieval_r1": None, "samples_seen": 0, "seconds": 31.5},
}  # fmt: skip
for metrics in ARMS.values():
    metrics["miou_finetuned"] = metrics["miou"] + 0.02
    metrics["rmse_finetuned"] = metrics["rmse"] - 0.3
    metrics["zeroshot_acc1"] = 0.4
SIDE = 32


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A whole run with three arms and a hostile alt text."""
    folder = tmp_path / "run"
    write_run(folder, ARMS)
    return folder


def write_run(folder: Path, arms: dict[str, dict[str, Any]], side: int = SIDE) -> None:
    """Write a run folder; `python tests/report/conftest.py FOLDER` makes one to look at."""
    data = folder / "report_data"
    (data / "captions").mkdir(parents=True)
    rng = np.random.default_rng(0)
    write(folder / "results.json", {
        "arms": arms,
        "recovered": {"miou": 0.88, "rmse": 0.81},
        "captions": {
            "alt": {"precision": 0.632, "recall": 0.211, "f1": 0.316},
            "description": {"precision": 0.61, "recall": 0.53, "f1": 0.567},
            "fused": {"precision": 0.641, "recall": 0.55, "f1": 0.592},
            "selected": {"precision": 0.702, "recall": 0.561, "f1": 0.624},
        },
        "seconds": 702.4,
        "settings": {"pictures": 8000, "seed": 0, "tower": {"width": 192, "layers": 6}},
        "results": [
            {"dataset": f"scenes-{split}", "model": "capwright_stem_vit", "pretrained": arm,
             "task": "segmentation", "metrics": {"miou": arms[arm]["miou"]}, "language": "en",
             "protocol": {"name": "dense-probe", "version": "v1"}, "seed": 0,
             "samples_seen": 76800, "code_revision": "0.1.0", "options": {"mode": "frozen"}}
            for arm in arms for split in ("seen", "unseen")
        ],
    })  # fmt: skip
    write(folder / "config.json", {"seed": 0, "versions": {"python": "3.11", "torch": "2.14"}})
    write(data / "classes.json", {"classes": CLASSES})
    edges = np.linspace(-0.2, 0.8, 31)
    scores: dict[str, list[float]] = {"bins": edges.tolist()}
    for name, mean in (
        ("shuffled", 0.0),
        ("alt", 0.18),
        ("describe-small", 0.35),
        ("select", 0.41),
    ):
        scores[name] = np.histogram(rng.normal(mean, 0.1, 4000), edges)[0].tolist()
    write(data / "scores.json", scores)
    write(data / "reasons.json", {
        "replaced alt: file name": 2210, "replaced alt: names nothing in the picture": 1904,
        "kept alt: fits the picture": 1750, "added description": 1502,
        "dropped: score below 0.1": 91,
    })  # fmt: skip
    write_examples(data, rng)
    for arm in arms:
        steps = np.arange(1, 151)
        losses = 2.5 + 3 * np.exp(-steps / 60) + rng.normal(0, 0.1, len(steps))
        rows = [
            {"step": step, "samples_seen": step * 512, "loss": loss}
            for step, loss in zip(steps.tolist(), losses.tolist(), strict=True)
        ]
        if arm != "scratch":
            path = folder / "arms" / arm / "metrics.jsonl"
            path.parent.mkdir(parents=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("seen", "unseen"):
        write_predictions(data, split, list(arms), rng, side)


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_examples(data: Path, rng: np.random.Generator) -> None:
    kinds: list[dict[str, Any]] = [
        {"alt": "IMG_2041.JPG", "selected": ["a toucan on a branch in front of a red car"],
         "reason": "replaced alt: file name", "scores": {"alt": 0.04, "select": 0.47}},
        {"alt": HOSTILE, "selected": ["a toucan and a white flower"],
         "reason": "replaced alt: names nothing in the picture",
         "scores": {"alt": 0.11, "select": 0.39}},
        {"alt": "brown horse, oil on canvas look", "selected": ["brown horse, oil on canvas look"],
         "reason": "kept alt: fits the picture", "scores": {"alt": 0.36, "select": 0.36}},
        {"alt": "buy now free shipping", "selected": [], "reason": "dropped: score below 0.1",
         "scores": {"alt": 0.02, "select": None}},
    ]  # fmt: skip
    with (data / "captions.jsonl").open("w", encoding="utf-8") as stream:
        for i in range(8):
            name = f"captions/{i:09d}.jpg"
            Image.fromarray(scene(rng, 96)[0]).save(data / name)
            described = ["a toucan in front of a car", "a bird and a red car on grass"]
            fused = "a toucan on a branch in front of a red car"
            oracle = "a toucan in front of a red car, to the left of a white flower"
            row = {"key": f"{i:09d}", "image": name, "described": described, "fused": fused,
                   "oracle": oracle, **kinds[i % 4]}  # fmt: skip
            stream.write(json.dumps(row) + "\n")


def scene(rng: np.random.Generator, side: int) -> tuple[Any, Any, Any]:
    """Discs on a ground plane: picture, mask, depth."""
    y, x = np.mgrid[:side, :side] / side
    depth = 8 / np.clip(y + 0.15, 0.2, None)
    colour = np.stack([0.5 + 0.3 * y, 0.6 + 0.1 * x, 0.8 - 0.4 * y], -1)
    seg = np.zeros((side, side), np.uint8)
    for _ in range(3):
        cx, cy, r = rng.uniform((0.2, 0.2, 0.1), (0.8, 0.8, 0.25))
        inside = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        seg[inside] = rng.integers(1, len(CLASSES))
        depth = np.where(inside, rng.uniform(1, 6), depth)
        colour = np.where(inside[..., None], rng.uniform(0, 1, 3), colour)
    pixels = np.clip(colour * 255 + rng.normal(0, 4, colour.shape), 0, 255)
    return pixels.astype(np.uint8), seg, depth.astype(np.float32)


def write_predictions(
    data: Path, split: str, arms: list[str], rng: np.random.Generator, side: int
) -> None:
    scenes = [scene(rng, side) for _ in range(4)]
    images, seg, depth = (np.stack(part) for part in zip(*scenes, strict=True))
    for number, arm in enumerate(arms):
        wrong = rng.random(seg.shape) < 0.1 + 0.1 * number
        noise = rng.normal(0, 0.2 + 0.2 * number, depth.shape)
        np.savez_compressed(
            data / f"predictions_{split}_{arm}.npz",
            images=images,
            seg_true=seg,
            seg_pred=np.where(wrong, rng.integers(0, len(CLASSES), seg.shape), seg).astype(
                np.uint8
            ),
            depth_true=depth,
            depth_pred=(depth + noise).astype(np.float32),
        )


if __name__ == "__main__":
    import sys

    more = {
        "oracle": ARMS["quality"] | {"miou": 0.281, "miou_interval": [0.272, 0.29], "rmse": 1.144},
        "mae": ARMS["alt"] | {"miou": 0.121, "miou_interval": [0.11, 0.132], "retrieval_r1": None},
    }
    write_run(Path(sys.argv[1]), ARMS | more if "--all" in sys.argv else ARMS, side=64)
