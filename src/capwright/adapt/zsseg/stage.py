"""ZSSeg, "A Simple Baseline for Zero-shot Semantic Segmentation" (arXiv 2112.14757), as a stage.

Stage 1 learns the beginning of the prompts (prompts.py), stage 2 class-agnostic proposals with a
text classifier (proposals.py); at the test CLIP looks at each proposal's crop (crops.py), and both
opinions are joined (ensemble.py). Texts are the same for queries and crops in every arm. (A
configuration of the original takes fixed prompts for queries and learned ones for crops.)

Reads a CLIP checkpoint and a labelled set. Writes, in OUT/SEED/ARM, the states of what learns and
results.json with the counted pixels beside it (results.npz), and over all seeds OUT/results.json,
OUT/summary.json and the tables of OUT/results.md. An arm whose results are there is skipped; a
killed one goes on at its last state. Run: `capwright adapt zsseg --recipe scenes`.

Shapes: C classes, E joint space, N pictures.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from capwright.adapt.zsseg import table
from capwright.adapt.zsseg.arms import measure_arm
from capwright.adapt.zsseg.config import ARMS, LEARNED, SELF_TRAINED, Config
from capwright.core.files import write_json
from capwright.core.processes import each
from capwright.core.run_folder import claim, only_one
from capwright.evaluate.results import Result, read_results, summarise, write_results


@dataclass(frozen=True, kw_only=True)
class Summary:
    """hIoU, seen and unseen mIoU by arm: means over the seeds; the files have the rest."""

    arms: dict[str, dict[str, float | None]]
    seeds: tuple[int, ...]
    out: Path


def run(config: Config) -> Summary:
    """Measure every arm that is missing and write the results."""
    with only_one(config.out):
        claim(config.out, config.plan())
        measure(config, chains(config))
        results = [
            result
            for seed, arm in product(config.seeds, ARMS)
            if (file := results_file(config, seed, arm)).is_file()
            for result in read_results(file)
        ]
        write_results(config.out / "results.json", results)
        return _summarised(config, results)


def chains(config: Config) -> list[tuple[int, tuple[str, ...]]]:
    """(seed, arms one after the other): self-training goes on from the arm with learned prompts."""
    arms = [arm for arm in ARMS if arm in config.arms]
    together = tuple(arm for arm in (LEARNED, SELF_TRAINED) if SELF_TRAINED in arms or arm in arms)
    alone = [(arm,) for arm in arms if arm not in (LEARNED, SELF_TRAINED)]
    chosen = alone + ([together] if together else [])
    return [(seed, arms) for seed in config.seeds for arms in chosen]


def measure(config: Config, jobs: Sequence[tuple[int, tuple[str, ...]]]) -> None:
    """Measure the arms of every job, `workers` jobs at a time."""
    missing = [
        (seed, arms)
        for seed, arms in jobs
        if not all(results_file(config, seed, arm).is_file() for arm in arms)
    ]
    threads = max(1, (os.cpu_count() or 1) // config.workers)
    each(partial(_measure, config), missing, config.workers, threads=threads)


def results_file(config: Config, seed: int, arm: str) -> Path:
    """Where the numbers of an arm lie."""
    return config.out / str(seed) / arm / "results.json"


def _measure(config: Config, job: tuple[int, tuple[str, ...]]) -> None:
    seed, arms = job
    for arm in arms:
        if not results_file(config, seed, arm).is_file():
            measure_arm(config, seed, arm)


def _summarised(config: Config, results: Sequence[Result]) -> Summary:
    rows = summarise(results)
    write_json(config.out / "summary.json", rows)
    table.write(config.out / "results.md", rows)
    kept = ("hiou", "miou_seen", "miou_unseen")
    arms: dict[str, dict[str, Any]] = {
        row["options"]["arm"]: {name: row["metrics"][name] for name in kept} for row in rows
    }
    return Summary(arms=arms, seeds=config.seeds, out=config.out)
