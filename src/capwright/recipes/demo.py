"""The main job on real pictures, end to end, on a laptop: what do better captions buy an encoder?

Composes scenes from photographic cut-outs with alt text as noisy as the web's, writes better
captions, pretrains one CLIP on each caption set (same pictures, same compute), probes segmentation
and depth, and builds a page.

Reads nothing but the cut-outs. Writes OUT/scenes, OUT/work, OUT/arms/ARM, OUT/results.json and
OUT/report.html. Run: `capwright demo --out runs/demo [--quick] [--all-arms]`. Every step is skipped
when its output is there, so a killed demo goes on where it was.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.files import read_json, write_json
from capwright.core.progress import Steps
from capwright.core.run_folder import MetricsLog, claim, versions

SHORT_ARMS = ("alt", "quality", "scratch")
ALL_ARMS = (*SHORT_ARMS, "oracle", "mae")
SPLITS = ("seen", "unseen")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The dials of the demo; everything else follows from them in `demo_steps`."""

    out: Path
    arms: tuple[str, ...] = SHORT_ARMS
    cutouts: Path | None = None  # RGBA pictures with captions; None fetches the default ones
    per_class: int = 11  # cut-outs a class, a quarter of them held out
    pictures: int = 8000  # scenes that are captioned and pretrained on
    labelled: int = 500  # scenes with labels for the probes
    tested: int = 300  # scenes of each test split
    human_fraction: float = 0.04  # of the pictures, with a full caption by a person
    picture_size: int = 128  # pixels a side on disk and for the captioner
    samples: int = 76_800  # samples that every pretrained arm sees
    batch: int = 256
    quick: bool = False  # shorter captioner and probe: the same plumbing, numbers that say nothing
    probe_seeds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ALL_ARMS]
        if unknown:
            raise CapwrightError(
                f"arm {unknown[0]!r} is unknown: allowed are {', '.join(ALL_ARMS)}"
            )

    @property
    def work(self) -> Path:
        """The work folder of the pictures that are captioned."""
        return self.out / "work" / "train"

    @property
    def pretrained(self) -> tuple[str, ...]:
        """The arms that are pretrained."""
        return tuple(arm for arm in self.arms if arm != "scratch")

    def plan(self) -> dict[str, Any]:
        """What the folder is bound to: all but the arms, so that more arms can be added later."""
        return {k: v for k, v in as_dict(self).items() if k not in ("out", "arms", "cutouts")}


def quick(
    out: Path, arms: tuple[str, ...] = SHORT_ARMS, cutouts: Path | None = None, seed: int = 0
) -> DemoConfig:
    """The same plumbing in under two minutes."""
    return DemoConfig(
        out=out, arms=arms, cutouts=cutouts, seed=seed, quick=True,
        pictures=1000, labelled=100, tested=60, samples=5_120, batch=128, probe_seeds=1,
    )  # fmt: skip


def run(config: DemoConfig) -> dict[str, Any]:
    """Run the whole story; returns what is in OUT/results.json."""
    from capwright.recipes import demo_steps as do

    claim(config.out, config.plan())
    write_json(config.out / "config.json", {"config": as_dict(config), "versions": versions()})
    story: dict[str, Callable[[], object]] = {
        "scenes": lambda: do.scenes(config),
        "describe": lambda: do.describe(config),
        "fuse, score, select": lambda: do.choose(config),
    }
    story |= {f"pretrain {arm}": partial(do.pretrain, config, arm) for arm in config.pretrained}
    story |= {f"evaluate {arm}": partial(do.evaluate, config, arm) for arm in config.arms}
    story |= {"report": lambda: do.report(config)}
    steps = Steps({name: _usual_seconds(config, name) for name in story})
    with MetricsLog(config.out / "steps.jsonl") as log:
        for name, step in story.items():
            steps.begin(name)
            began = time.monotonic()
            step()
            log.write(step=name, seconds=round(time.monotonic() - began, 2))
    results: dict[str, Any] = read_json(config.out / "results.json")
    return results


def _usual_seconds(config: DemoConfig, step: str) -> float:
    """Usual seconds of a step on two cores, from the runs in docs/log.md."""
    kind = step.partition(" ")[0]
    if kind == "pretrain":
        return config.samples / 700
    if kind == "evaluate":
        return 5.0 if config.quick else 70.0
    per_picture = {"scenes": 0.002, "describe": 0.014, "fuse,": 0.002, "report": 0.0}
    fixed = {"scenes": 5.0, "describe": 10.0 if config.quick else 60.0, "fuse,": 6.0, "report": 5}
    return fixed[kind] + per_picture[kind] * config.pictures


def table(results: dict[str, Any]) -> str:
    """The results as a table for a terminal."""
    columns = {
        "mIoU %": ("miou", 100), "RMSE m": ("rmse", 1), "AbsRel objects": ("absrel_objects", 1),
        "mIoU % unseen": ("miou_unseen", 100), "RMSE m unseen": ("rmse_unseen", 1),
        "R@1 %": ("retrieval_r1", 100),
    }  # fmt: skip
    lines = ["".join(f"{name:>16}" for name in ("arm", *columns))]
    for arm, metrics in results["arms"].items():
        cells = (f"{metrics[key] * scale:.2f}" for key, scale in columns.values())
        lines.append("".join(f"{cell:>16}" for cell in (arm, *cells)))
    for metric, share in results.get("recovered", {}).items():
        lines.append(f"recovered of the gap from alt to oracle, {metric}: {share}")
    return "\n".join(lines)
