"""Training against open_clip's own loop: samples a second and the loss curve, in one run.

Theirs is `open_clip_train.main` in float32 on WebDataset tars; ours is `pretrain.engine.run` on
tars with the same samples, decoded as it goes. The same ViT-S/32 at 224 pixels and text tower of 77
positions, the same initial weights, pictures, captions (18 tokens on average), batch, AdamW,
warm-up, cosine and clipping, no patch dropout. Each runs alone with two threads, theirs first.
Rates are medians over the steps after the first few.

Their tars hold the samples in the order in which ours draws them and their shuffling is off, so
both see the same batches; the crops, and how they are resampled, are each loop's own. The curves
agree if the losses of the first steps differ by less than 1% on average, before such differences
have grown, and those of the whole run by less than 5%. On equal pixels they are equal (`--parts`).

`--parts` prints where the gain comes from instead: the same step with one change after the
other, measured in turns in one process.

Run: python benchmarks/train_step.py [--parts]. The last line is JSON with `ratio`, `target`, `ok`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from support.web_corpus import write_tars

from support import open_clip_run

MODEL, SIZE, BATCH, STEPS, WARM = "ViT-S-32", 224, 64, 24, 3
PER_TAR, THREADS, SEED, TARGET = 128, 2, 0, 1.8
LEARNING_RATE, DECAY, BETAS, EPSILON, CLIP, WARMUP = 1e-4, 0.1, (0.9, 0.98), 1e-6, 1.0, 6
FIRST, FIRST_LIMIT, LIMIT = 6, 0.01, 0.05  # steps; shares of the loss


def theirs(folder: Path) -> list[open_clip_run.Step]:
    """open_clip's loop."""
    options = {
        "model": MODEL,
        "pretrained": folder / "initial.pt",
        "train-num-samples": STEPS * BATCH,
        "epochs": 1,
        "workers": 0,  # a worker process takes more from two busy cores than it gives
        "lr": LEARNING_RATE,
        "wd": DECAY,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "eps": EPSILON,
        "grad-clip-norm": CLIP,
        "warmup": WARMUP,
    }
    return open_clip_run.run(
        folder / "theirs",
        folder / "their_tars",
        options,
        batch=BATCH,
        threads=THREADS,
        in_order=True,
    )


def ours(folder: Path) -> list[open_clip_run.Step]:
    """The engine, in a process of its own as well."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True)
    lines = (folder / "ours" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    ends = [0.0, *(step["seconds"] for step in steps)]
    return [
        open_clip_run.Step(seconds=end - start, loss=step["loss"])
        for step, start, end in zip(steps, ends, ends[1:], strict=False)
    ]


def train(folder: Path) -> None:
    """Our run, in this process."""
    from capwright.pretrain import engine
    from capwright.pretrain.config import Augmentation, PretrainConfig

    engine.run(
        PretrainConfig(
            out=folder / "ours",
            work=folder / "work",
            model=MODEL,
            init=str(folder / "initial.pt"),
            tokenizer="open_clip",
            image_size=SIZE,
            batch_size=BATCH,
            samples=STEPS * BATCH,
            warmup_samples=WARMUP * BATCH,
            seed=SEED,
            learning_rate=LEARNING_RATE,
            weight_decay=DECAY,
            betas=BETAS,
            grad_clip=CLIP,
            patch_dropout=0,
            # of open_clip's crops, those that fit into a square
            augmentation=Augmentation(crop_area=(0.9, 1.0), crop_aspect=(0.95, 1 / 0.95)),
            precision="fp32",
            cache_pixels=False,
            threads=THREADS,
            log_every_steps=1,
        )
    )


def prepare(folder: Path) -> None:
    """The corpus, its index and the initial weights."""
    import open_clip
    import torch

    from capwright.corpus.index import IndexConfig, run
    from capwright.pretrain.draws import permutation

    write_tars(folder / "tars", range(STEPS * BATCH), PER_TAR)
    in_our_order = permutation(SEED, 0, STEPS * BATCH)
    write_tars(folder / "their_tars", in_our_order.tolist(), PER_TAR)
    run(IndexConfig(corpus=str(folder / "tars"), work=folder / "work"))
    torch.manual_seed(0)
    torch.save(open_clip.create_model(MODEL).state_dict(), folder / "initial.pt")


def rate(steps: list[open_clip_run.Step]) -> float:
    """Samples a second, the median."""
    return float(BATCH / np.median([step.seconds for step in steps[WARM:]]))


def apart(one: list[open_clip_run.Step], other: list[open_clip_run.Step]) -> float:
    """Mean difference of the losses as a share of their mean."""
    losses = np.array([[step.loss for step in steps] for steps in (one, other)])
    return float((losses[1] - losses[0]).mean() / losses[0].mean())


def main() -> None:
    """Train both and print the ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        their_steps, our_steps = theirs(folder), ours(folder)
    early = apart(their_steps[:FIRST], our_steps[:FIRST])
    whole = apart(their_steps, our_steps)
    ratio = rate(our_steps) / rate(their_steps)
    report = {
        "name": "train_step",
        "samples_per_second": round(rate(our_steps), 2),
        "peer_samples_per_second": round(rate(their_steps), 2),
        "loss_first_last": [round(our_steps[i].loss, 3) for i in (0, -1)],
        "peer_loss_first_last": [round(their_steps[i].loss, 3) for i in (0, -1)],
        "loss_apart_first_whole": [round(early, 4), round(whole, 4)],
        "ratio": round(ratio, 2),
        "target": TARGET,
        "ok": ratio >= TARGET and abs(early) < FIRST_LIMIT and abs(whole) < LIMIT,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    if sys.argv[1:] == ["--parts"]:
        from support.step_parts import report

        print(json.dumps(report()))
    elif len(sys.argv) > 1:
        train(Path(sys.argv[1]))
    else:
        main()
