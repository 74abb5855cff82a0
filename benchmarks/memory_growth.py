"""Memory over ten epochs with persistent loader workers: does it grow?

A run on a small corpus, its pictures decoded from the tars by two worker processes. At an epoch's
last step the memory of the training process and its workers is summed (Pss_Anon of
/proc/PID/smaps_rollup: what processes share counts once, what a worker copies counts, files do
not). glibc is told to give freed blocks back at once, so that what is in use is measured and not
how scattered it lies. The slope is that of a line through ten epochs, after twelve in which caches
fill and workers come to have pages of their own.

Run: python benchmarks/memory_growth.py. The last line is JSON with `ratio` (the bound of 0.5 MB an
epoch over the slope, at most 100), `target` and `ok`. Linux only.
"""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from support.web_corpus import write_tars

MOST = 0.5  # MB an epoch
PICTURES, BATCH, EPOCHS, FIRST, WORKERS, THREADS = 1024, 64, 22, 12, 2, 2
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # bytes


def memory() -> float:
    """MB of this process and its children."""
    total = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total / 1000


def train(folder: Path) -> dict[str, Any]:
    """The run in this process; memory at every epoch's last step."""
    from capwright.corpus.index import IndexConfig, run
    from capwright.pretrain import engine
    from capwright.pretrain.config import PretrainConfig
    from capwright.pretrain.step import Stepper

    run(IndexConfig(corpus=str(folder / "tars"), work=folder / "work"))
    found: list[float] = []
    children: set[int | None] = set()
    steps, update = 0, Stepper.update

    def watched(self: Stepper) -> float:
        nonlocal steps
        norm = update(self)
        steps += 1
        if steps % (PICTURES // BATCH) == 0:
            gc.collect()
            children.update(child.pid for child in multiprocessing.active_children())
            found.append(memory())
        return norm

    Stepper.update = watched  # type: ignore[method-assign]
    engine.run(
        PretrainConfig(
            out=folder / "out",
            work=folder / "work",
            batch_size=BATCH,
            samples=EPOCHS * PICTURES,
            warmup_samples=0,
            checkpoint_samples=EPOCHS * PICTURES,
            cache_pixels=False,
            loader_workers=WORKERS,
            threads=THREADS,
        )
    )
    assert len(children) == WORKERS, "workers are the same from the first epoch to the last"
    return {"memory": found}


def main() -> None:
    """Train and print the slope."""
    with tempfile.TemporaryDirectory() as name:
        write_tars(Path(name) / "tars", range(PICTURES), PICTURES)
        done = subprocess.run(
            [sys.executable, __file__, name],
            env={**os.environ, **GIVE_BACK},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    memory_T = np.array(json.loads(done.stdout)["memory"])
    epoch_T = np.arange(len(memory_T))
    slope, _ = np.polyfit(epoch_T[FIRST:], memory_T[FIRST:], 1)
    ratio = min(100.0, MOST / max(float(slope), 1e-9))
    report = {
        "name": "memory_growth",
        "epochs": EPOCHS,
        "mb": [round(value, 1) for value in memory_T.tolist()],
        "mb_per_epoch": round(float(slope), 3),
        "ratio": round(ratio, 2),
        "target": 1.0,
        "ok": ratio >= 1.0,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(train(Path(sys.argv[1]))))
    else:
        main()
