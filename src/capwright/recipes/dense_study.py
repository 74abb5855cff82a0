"""What the dense suite sees in the demo's encoders: segmentation from words, and transfer.

Pretrains the demo's arms (alt text, Capwright's captions; fresh weights are the control) with
several seeds on the same scenes, or takes the scenes, the captions and the first seed from the
folder of a demo. Every checkpoint then segments the scenes from words by every training-free
method, and is transferred to segmentation, depth, detection and surface normals with growing
fractions of the labelled scenes.

    python -m capwright.recipes.dense_study --out runs/dense [--demo runs/demo]

Reads nothing but the cut-outs (or the demo). Writes OUT/demo, OUT/arms/ARM/SEED,
OUT/cells/TASK/ARM/SEED and OUT/results.json, OUT/results.md with the curves beside it. A cell
(task, arm, seed) whose numbers are there is skipped, so a killed study goes on.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from capwright.core.config import as_dict, override
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json, write_json
from capwright.core.processes import each
from capwright.core.run_folder import claim, versions
from capwright.evaluate.results import Result, read_results
from capwright.recipes import dense_table
from capwright.recipes.demo import DemoConfig
from capwright.recipes.dense_table import TRAINING_FREE
from capwright.report.learning_curves import plot

ARMS = ("alt", "quality", "scratch")
SCRATCH = "scratch"  # fresh weights
TRANSFERRED = ("segmentation", "depth", "detection", "normals")  # by the recipes scenes_TASK
TASKS = (TRAINING_FREE, *TRANSFERRED)
STEPS = {"segmentation": 100, "depth": 100, "detection": 150, "normals": 100}
TRAIN, TEST = "probe", "seen"  # splits of the demo: what heads learn from, and all is tested on


@dataclass(frozen=True, kw_only=True)
class DenseStudyConfig:
    """The dials of the study."""

    out: Path
    """Folder to write."""
    demo: Path | None = None
    """Folder of a demo, whose scenes, captions and encoders are taken; None makes OUT/demo."""
    tasks: tuple[str, ...] = TASKS
    """What is measured."""
    arms: tuple[str, ...] = ARMS
    """Of the demo."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of pretraining and of the heads; the scenes and the captions are the same."""
    fractions: tuple[float, ...] = (0.05, 0.2, 1.0)
    """Of the labelled scenes; detection, which costs most, leaves out the first."""
    steps: Mapping[str, int] = field(default_factory=lambda: dict(STEPS))
    """Of a task's transfer; a task that is not named has as many as its recipe."""
    cutouts: Path | None = None
    """RGBA pictures with captions; None fetches the default ones."""
    per_class: int = 11
    """Cut-outs a class, a quarter of them held out."""
    pictures: int = 8000
    """Scenes that are captioned and trained on."""
    labelled: int = 500
    """Scenes with labels that heads learn from."""
    tested: int = 300
    """Scenes that all is tested on."""
    samples: int = 76_800
    """Samples that an encoder sees."""
    batch: int = 256
    """Samples of a step."""
    quick: bool = False
    """A shorter captioner, for tests."""
    workers: int = 2
    """Cells at once, a processor core each."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise CapwrightError("no seeds: give at least one, such as 0")
        named = (("task", self.tasks, TASKS), ("arm", self.arms, ARMS), ("task", self.steps, TASKS))
        for kind, chosen, allowed in named:
            unknown = [name for name in chosen if name not in allowed]
            if unknown:
                raise CapwrightError(
                    f"{kind} {unknown[0]!r} is unknown: allowed are {', '.join(allowed)}"
                )

    @property
    def scenes(self) -> DemoConfig:
        """The demo whose scenes and captions are used; CapwrightError where there is none."""
        if self.demo is not None:
            plan = read_json(self.demo / "manifest.json").get("plan", {})
            known = {one.name for one in fields(DemoConfig)} - {"out", "arms", "cutouts"}
            if set(plan) != known:
                raise CapwrightError(
                    f"{self.demo} holds no demo of this version: give the folder that "
                    "`capwright demo --out` wrote"
                )
            return DemoConfig(out=self.demo, **plan)
        return DemoConfig(
            out=self.out / "demo", cutouts=self.cutouts, per_class=self.per_class,
            pictures=self.pictures, labelled=self.labelled, tested=self.tested,
            samples=self.samples, batch=self.batch, quick=self.quick,
        )  # fmt: skip

    def fractions_of(self, task: str) -> tuple[float, ...]:
        """The fractions of a task."""
        few = task == "detection" and len(self.fractions) > 1
        return tuple(sorted(self.fractions)[1:]) if few else self.fractions

    def encoder(self, arm: str, seed: int) -> Path | None:
        """Run folder of an arm's pretraining; None for fresh weights."""
        if arm == SCRATCH:
            return None
        demo = self.scenes
        own = demo.out / "arms" / arm
        if self.demo is not None and seed == demo.seed and (own / "summary.json").exists():
            return own
        return self.out / "arms" / arm / str(seed)

    def plan(self) -> dict[str, Any]:
        """What the folder is bound to: tasks, arms, seeds and fractions can be added."""
        return {"demo": self.scenes.plan()}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One task of one encoder."""

    task: str
    arm: str
    seed: int

    def folder(self, config: DenseStudyConfig) -> Path:
        """Where its numbers lie."""
        return config.out / "cells" / self.task / self.arm / str(self.seed)


def run(config: DenseStudyConfig) -> dict[str, Any]:
    """Measure every cell that is missing; returns what is in OUT/results.json."""
    from capwright.recipes import demo_steps

    claim(config.out, config.plan())
    demo_steps.prepare(config.scenes)
    for seed in config.seeds:  # one after the other, so that a killed study has whole seeds
        pairs = [(arm, seed) for arm in config.arms if arm != SCRATCH]
        each(partial(pretrain, config), pairs, config.workers)
        each(partial(measure, config), cells(config, seed), config.workers)
        found = write_results(config)
    return found


def cells(config: DenseStudyConfig, seed: int) -> list[Cell]:
    """What is measured with a seed: words mean nothing to fresh weights."""
    every = [Cell(task=task, arm=arm, seed=seed) for task in config.tasks for arm in config.arms]
    return [cell for cell in every if (cell.task, cell.arm) != (TRAINING_FREE, SCRATCH)]


def pretrain(config: DenseStudyConfig, pair: tuple[str, int]) -> None:
    """Pretrain an arm as the demo does, with another seed."""
    from capwright.pretrain import engine
    from capwright.recipes import demo_steps

    arm, seed = pair
    folder = config.encoder(arm, seed)
    assert folder is not None
    if not (folder / "summary.json").exists():
        engine.run(replace(demo_steps.pretrain_plan(config.scenes, arm), out=folder, seed=seed))


def measure(config: DenseStudyConfig, cell: Cell) -> None:
    """Measure what is missing of a cell."""
    (training_free if cell.task == TRAINING_FREE else transfer)(config, cell)


def training_free(config: DenseStudyConfig, cell: Cell) -> None:
    """Every method under both protocols, with the background and without."""
    from capwright.evaluate import training_free as stage

    for name, things in (("results.json", False), ("things.json", True)):
        out = cell.folder(config) / name
        if not out.exists():
            stage.run(
                stage.TrainingFreeConfig(
                    checkpoint=config.encoder(cell.arm, cell.seed),
                    data=config.scenes.out / "work" / TEST,
                    out=out,
                    label=f"scenes-{TEST}",
                    things=things,
                    seed=cell.seed,
                )
            )


def transfer(config: DenseStudyConfig, cell: Cell) -> None:
    """Every fraction of the labelled scenes."""
    from capwright.evaluate.transfer import task
    from capwright.recipes.transfer_plan import transfer_plan

    options = {
        "checkpoint": str(config.encoder(cell.arm, cell.seed) or SCRATCH),
        "data": config.scenes.out / "work",
        "out": cell.folder(config),
        "fractions": config.fractions_of(cell.task),
    }
    plan = transfer_plan(cell.task, f"scenes_{cell.task}", options, ())
    fresh, steps = plan.scratch_schedule, config.steps.get(cell.task)
    task.run(
        replace(
            plan,
            seeds=(cell.seed,),
            train_split=TRAIN,
            test_splits=(TEST,),
            train_samples=None,
            test_samples=None,
            schedule=_with_steps(plan.schedule, steps),
            scratch_schedule=fresh and _with_steps(fresh, steps),
        )
    )


def _with_steps(schedule: Any, steps: int | None) -> Any:
    """The schedule with so many steps, a tenth of them warm-up."""
    return schedule if steps is None else replace(schedule, steps=steps, warmup_steps=steps // 10)


def write_results(config: DenseStudyConfig) -> dict[str, Any]:
    """results.json and results.md of the cells that are there."""
    every = read_cells(config.out)
    transferred = dense_table.transfer(every)
    found = {
        "training_free": dense_table.training_free(every),
        "transfer": transferred,
        "cells": every,
        "config": as_dict(config),
        "versions": versions(),
        "processors": os.cpu_count(),
    }
    write_json(config.out / "results.json", found)
    texts = {"results.md": dense_table.markdown(found)}
    for headline in dense_table.HEADLINES:
        if curves := dense_table.curves(transferred, headline):
            texts[dense_table.figure_name(headline)] = plot(curves, headline.title)
    for name, text in texts.items():
        with atomic_path(config.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return found


def read_cells(out: Path) -> list[dict[str, Any]]:
    """Every number that is there."""
    found: list[dict[str, Any]] = []
    for folder in sorted((out / "cells").glob("*/*/*")):
        task, arm, seed = folder.parts[-3:]
        files = "*.json" if task == TRAINING_FREE else "*/*/result.json"
        for row in (row for file in sorted(folder.glob(files)) for row in read_results(file)):
            found.append({"task": task, "arm": arm, "seed": int(seed), **_cell(row)})
    return found


def _cell(row: Result) -> dict[str, Any]:
    """What the tables need of a result."""
    options = ("method", "fraction", "items")
    kept = {name: row.options[name] for name in options if name in row.options}
    metrics = {name: number for name, number in row.metrics.items() if "/" not in name}
    protocol = f"{row.protocol.name}/{row.protocol.version}"
    return {"dataset": row.dataset, "protocol": protocol, **kept, "metrics": metrics}


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--demo", type=click.Path(path_type=Path), help="Folder of a demo to start from.")
@click.option("--cutouts", type=click.Path(path_type=Path), help="Your own RGBA cut-outs.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(out: Path, demo: Path | None, cutouts: Path | None, settings: tuple[str, ...]) -> None:
    """Measure what the dense suite sees in the demo's encoders."""
    found = run(override(DenseStudyConfig(out=out, demo=demo, cutouts=cutouts), settings))
    click.echo(dense_table.markdown(found))
    click.echo(json.dumps({"cells": len(found["cells"])}))


if __name__ == "__main__":
    # classes of __main__ have another name in worker processes
    from capwright.recipes.dense_study import command as main

    main()
