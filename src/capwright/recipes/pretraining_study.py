"""What every caption sampling, objective and tower buys on the scenes, each against its control.

Composes scenes once, captions them with the embedded captioner, labels them with a small expert
trained on 4% of them, then trains every arm of `study_arms.py` with several seeds and measures it:
dense probe (frozen and fine-tuned), retrieval, zero-shot classification. An arm is compared at the
same pictures seen with its control, and at the same compute with the control interpolated between
its lengths.

    python -m capwright.recipes.pretraining_study --out runs/study

Reads nothing but the cut-outs. Writes OUT/scenes, OUT/work, OUT/cells/ARM/SEED and
OUT/results.json, OUT/results.md. Each cell (arm, seed) is skipped when its numbers are there, so a
killed study goes on."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from capwright.core.config import as_dict, override
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json, write_json
from capwright.core.processes import each
from capwright.core.run_folder import claim, versions
from capwright.pretrain.config import PretrainConfig
from capwright.recipes import study_table
from capwright.recipes.demo import DemoConfig
from capwright.recipes.study_arms import REINFORCED, TEACHER, arms, selected_captions


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The dials of the study."""

    out: Path
    """Folder to write."""
    arms: tuple[str, ...] = ()
    """Names in study_arms.py; empty is all of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the weights, the order and the captions; the scenes are the same."""
    cutouts: Path | None = None
    """RGBA pictures with captions; None fetches the default ones."""
    per_class: int = 5
    """Cut-outs a class, a quarter of them held out."""
    pictures: int = 4000
    """Scenes that are captioned and trained on."""
    labelled: int = 500
    """Scenes with labels for the probes."""
    tested: int = 300
    """Scenes that the probes are tested on."""
    samples: int = 12_800
    """Samples that an arm of length 1 sees."""
    batch: int = 64
    """Samples of a step."""
    frozen_samples: int = 5_000
    """Pictures that the frozen probe's heads see."""
    finetuned_samples: int = 1_500
    """Pictures that the fine-tuned probe sees."""
    quick: bool = False
    """A shorter captioner, for tests."""
    workers: int = 2
    """Cells at once, a processor core each."""

    @property
    def demo(self) -> DemoConfig:
        """The demo's plan, whose first steps make scenes and captions."""
        return DemoConfig(
            out=self.out, cutouts=self.cutouts, per_class=self.per_class, pictures=self.pictures,
            labelled=self.labelled, tested=self.tested, quick=self.quick,
        )  # fmt: skip

    @property
    def work(self) -> Path:
        """The work folder of the pictures that are trained on."""
        return self.demo.work

    @property
    def chosen(self) -> tuple[str, ...]:
        """The arms that are trained; raises CapwrightError for a name that there is not."""
        every = arms(self.work)
        unknown = [name for name in self.arms if name not in every]
        if unknown:
            raise CapwrightError(f"arm {unknown[0]!r} is unknown: allowed are {', '.join(every)}")
        return self.arms or tuple(every)

    def plan(self) -> dict[str, Any]:
        """What the folder is bound to: arms and seeds can be added."""
        free = ("out", "arms", "seeds", "cutouts", "workers")
        return {k: v for k, v in as_dict(self).items() if k not in free}


def run(config: StudyConfig) -> dict[str, Any]:
    """Measure every cell that is missing; returns what is in OUT/results.json."""
    chosen = config.chosen
    claim(config.out, config.plan())
    prepare(config)
    cells = [(arm, seed) for seed in config.seeds for arm in chosen]
    taught = [cell for cell in cells if cell[0] == REINFORCED]
    first = [(TEACHER, config.seeds[0])] if taught else []
    run_cells(config, list(dict.fromkeys([*first, *(c for c in cells if c not in taught)])))
    if taught:
        reinforce(config)
        run_cells(config, taught)
    return write_results(config)


def prepare(config: StudyConfig) -> None:
    """Scenes, captions, the expert's labels, decoded pictures."""
    from capwright.experts import stage
    from capwright.experts.small import SmallExpertConfig
    from capwright.recipes import demo_steps

    demo_steps.prepare(config.demo)
    stage.run(
        stage.ExpertsConfig(
            work=config.work,
            segmentation="scenes",
            depth="scenes",
            normals="from-depth",
            small=SmallExpertConfig(picture_size=128, samples=6_000),
        )
    )


def reinforce(config: StudyConfig) -> None:
    """The embeddings of the longest control, for the arm that learns from them."""
    from capwright.experts import reinforce as stage

    stage.run(
        stage.ReinforceConfig(
            work=config.work,
            teachers=(str(cell_folder(config, TEACHER, config.seeds[0]) / "run"),),
            stages=("select",),
            augmentations=5,
            crop_area=(0.6, 1.0),  # as everywhere in the study, so that the loss alone differs
            operations=0,
        )
    )


def cell_folder(config: StudyConfig, arm: str, seed: int) -> Path:
    """Where a cell lies."""
    return config.out / "cells" / re.sub(r"[^a-z0-9]+", "-", arm.replace("×", "x")) / str(seed)


def run_cells(config: StudyConfig, cells: Sequence[tuple[str, int]]) -> None:
    """Train and measure those that have no numbers yet."""
    missing = [c for c in cells if not (cell_folder(config, *c) / "cell.json").exists()]
    each(partial(measure_cell, config), missing, config.workers)


def measure_cell(config: StudyConfig, cell: tuple[str, int]) -> None:
    """Train one arm with one seed and write its numbers to cell.json."""
    from capwright.evaluate import classification, dense_probe, retrieval
    from capwright.evaluate.results import read_results
    from capwright.pretrain import engine

    arm, seed = cell
    folder = cell_folder(config, arm, seed)
    base = PretrainConfig(
        out=folder / "run",
        work=config.work,
        captions=(selected_captions(config.work),),
        samples=config.samples,
        batch_size=config.batch,
        checkpoint_samples=config.samples,
        keep_checkpoints=1,
        seed=seed,
    )
    summary = engine.run(arms(config.work)[arm].apply(base))
    seen, probes = config.out / "work" / "seen", folder / "dense.json"
    if not probes.exists():
        dense_probe.run(
            dense_probe.DenseProbeConfig(
                checkpoint=folder / "run",
                train=config.out / "work" / "probe",
                tests={"seen": seen},
                out=probes,
                seeds=(seed,),
                recipe=probe_recipe(config),
            )
        )
    numbers = {
        f"{metric}_{mode}": value
        for mode in ("frozen", "finetuned")
        for metric, value in dense_probe.headline(read_results(probes), mode).items()
    }
    found = retrieval.run(
        retrieval.RetrievalConfig(
            checkpoint=folder / "run", data=seen, out=folder / "retrieval.json"
        )
    )
    numbers["retrieval"] = found.metrics["image_retrieval_recall@1"]
    zero_shot = classification.run(
        classification.ClassificationConfig(
            checkpoint=folder / "run", data=seen, out=folder / "classification.json"
        )
    )
    numbers["zero_shot"] = zero_shot.metrics["acc1"]
    ran = {"flops": summary.flops, "seconds": summary.seconds, "samples": summary.samples_seen}
    write_json(folder / "cell.json", {"arm": arm, "seed": seed, **ran, **numbers})


def probe_recipe(config: StudyConfig) -> Any:
    """dense-probe/v1 with shorter schedules, so under another version."""
    from capwright.evaluate.dense_training import ProbeRecipe

    recipe = ProbeRecipe(train_samples=config.labelled, test_samples=config.tested)
    return replace(
        recipe,
        frozen=replace(recipe.frozen, samples=config.frozen_samples),
        finetuned=replace(recipe.finetuned, samples=config.finetuned_samples),
        from_scratch=replace(recipe.from_scratch, samples=config.finetuned_samples),
    )


def write_results(config: StudyConfig) -> dict[str, Any]:
    """results.json and results.md of the cells that are there."""
    files = sorted((config.out / "cells").glob("*/*/cell.json"))
    cells = [read_json(file) for file in files]
    known = arms(config.work)
    found = {
        "rows": study_table.rows(cells, known),
        "cells": cells,
        "config": as_dict(config),
        "versions": versions(),
        "processors": os.cpu_count(),
    }
    write_json(config.out / "results.json", found)
    with atomic_path(config.out / "results.md") as temporary:
        temporary.write_text(study_table.markdown(found["rows"]), encoding="utf-8")
    return found


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--arms", "names", default="", help="Which arms, with semicolons; none is all.")
@click.option("--cutouts", type=click.Path(path_type=Path), help="Your own RGBA cut-outs.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(out: Path, names: str, cutouts: Path | None, settings: tuple[str, ...]) -> None:
    """Measure what caption samplings, objectives and towers buy on the scenes."""
    chosen = tuple(name.strip() for name in names.split(";") if name.strip())
    found = run(override(StudyConfig(out=out, arms=chosen, cutouts=cutouts), settings))
    click.echo(study_table.markdown(found["rows"]))
    click.echo(json.dumps({"cells": len(found["cells"])}))


if __name__ == "__main__":
    # classes of __main__ have another name in worker processes
    from capwright.recipes.pretraining_study import command as main

    main()
