"""How long a step waits for its batch, and how long a run takes to its first step.

Wait: runs with the default loader settings, ViT-S/32 at 224 pixels and `nano` at 64, once with
pictures that are decoded beforehand and once from the tars as it goes; the share is the seconds
that the loop waited for batches over all seconds, without the first steps.

Start: a corpus of a million rows with alt text and a caption sidecar, whose pictures are those of
one tar. A fresh process imports the engine, then the clock runs until the first forward pass
begins: index, captions, plan, model, first batch.

Run: python benchmarks/data_wait.py. The last line is JSON with `ratio` (the smaller of 2% over the
largest share and 5 s over the seconds), `target` and `ok`.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support.web_corpus import write_tars

from capwright.corpus.index import IndexConfig, load_index, run, write_index_shard
from capwright.corpus.sidecars import write_sidecar

MOST_SHARE, MOST_SECONDS = 0.02, 5.0
PICTURES, SHARDS, PER_SHARD = 512, 100, 10_000
THREADS = 2
STEPS, WARM = 10, 3  # of which the first are not counted
ARMS = {
    "nano": {"model": "nano", "image_size": 64, "batch_size": 256},
    "vit_s_32": {"model": "ViT-S-32", "image_size": 224, "batch_size": 64},
}


def million_rows(small: Path, big: Path) -> None:
    """The small index again and again, with keys and captions of its own for every row."""
    rows = load_index(small).to_pylist()
    for shard in (f"{number:05d}" for number in range(SHARDS)):
        here = [
            {**rows[i % len(rows)], "key": f"{shard}{i:04d}", "shard": shard}
            | {"text": f"{rows[i % len(rows)]['text']} {i}"}
            for i in range(PER_SHARD)
        ]
        write_index_shard(big / "index", shard, here, {})
        captions = [
            {"key": row["key"], "source": "describe", "text": f"{row['text']} in {shard}"}
            for row in here
        ]
        write_sidecar(big / "captions" / "describe", shard, captions)


def child(out: Path, work: Path, sidecar: bool, dials: dict[str, Any]) -> dict[str, float]:
    """One run in this process: seconds to the first forward pass, and the share of the wait."""
    from capwright.pretrain import engine
    from capwright.pretrain.config import CaptionSource, PretrainConfig
    from capwright.pretrain.step import Stepper

    began, first, backward = time.monotonic(), [], Stepper.backward

    def watched(self: Stepper, batch: Any) -> Any:
        first.append(time.monotonic() - began)
        return backward(self, batch)

    Stepper.backward = watched  # type: ignore[method-assign]
    sources = [CaptionSource(name="alt")]
    if sidecar:
        sources.append(CaptionSource(name="describe", folder=work / "captions" / "describe"))
    engine.run(
        PretrainConfig(
            out=out,
            work=work,
            captions=tuple(sources),
            tokenizer="open_clip",
            patch_dropout=0,
            samples=STEPS * dials["batch_size"],
            warmup_samples=0,
            threads=THREADS,
            log_every_steps=1,
            **dials,
        )
    )
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    seconds = steps[-1]["seconds"] - steps[WARM - 1]["seconds"]
    waited = sum(step["data_seconds"] for step in steps[WARM:])
    return {
        "start_seconds": round(first[0], 2),
        "wait_share": round(waited / seconds, 4),
        "step_seconds": round(seconds / (STEPS - WARM), 3),
    }


def measure(out: Path, work: Path, sidecar: bool, dials: dict[str, Any]) -> dict[str, float]:
    """`child` in a fresh process."""
    order = json.dumps([str(out), str(work), sidecar, dials])
    done = subprocess.run(
        [sys.executable, __file__, order], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Make both corpora, measure, and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder / "tars", range(PICTURES), PICTURES)
        run(IndexConfig(corpus=str(folder / "tars"), work=folder / "small"))
        waits = {}
        for arm, dials in ARMS.items():
            for cached in (True, False):
                out = folder / f"{arm}-{cached}"
                both = {**dials, "cache_pixels": cached}
                found = measure(out, folder / "small", False, both)
                waits[arm if cached else f"{arm}_from_tars"] = found
        million_rows(folder / "small", folder / "big")
        dials = {**ARMS["nano"], "cache_pixels": False}
        start = measure(folder / "start", folder / "big", True, dials)["start_seconds"]
    worst = max(found["wait_share"] for found in waits.values())
    ratio = min(MOST_SHARE / worst, MOST_SECONDS / start)
    report = {
        "name": "data_wait",
        "rows": SHARDS * PER_SHARD,
        "start_seconds": start,
        "runs": waits,
        "ratio": round(ratio, 2),
        "target": 1.0,
        "ok": ratio >= 1.0,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        given_out, given_work, *rest = json.loads(sys.argv[1])
        print(json.dumps(child(Path(given_out), Path(given_work), *rest)))
    else:
        main()
