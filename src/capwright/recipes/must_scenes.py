"""MUST on drawings: a CLIP that has seen the photographic scenes learns drawings without labels.

Makes two sets of single drawn things (datasets/scenes/drawings.py), then adapts one checkpoint to
each: by all of MUST, by pseudo-labels alone, and with each of the four losses switched off.

    python -m capwright.recipes.must_scenes --out runs/must --checkpoint runs/demo/arms/quality

Without --checkpoint the demo's scenes are made in OUT/demo and a CLIP pretrained on them with full
captions. Writes OUT/sets/STYLE, OUT/cells/STYLE/ARM/SEED (a run of `capwright adapt must` each) and
OUT/results.json, OUT/results.md. A cell that is done is skipped, one that was cut off goes on.

The settings are those of the published table where a set is small (DTD), but for what belongs to
the size of the tower and of the set: batch, learning rate, layer decay, momentum, mask, scale.
`capwright adapt must --recipe scenes` is one of the cells.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from capwright.adapt import must
from capwright.adapt.must.config import Config, Weights
from capwright.core.config import as_dict, override
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, write_json
from capwright.core.processes import each
from capwright.core.run_folder import claim, versions
from capwright.recipes.over_seeds import difference, summary, value

OUT = Path("runs/must")
STYLES = ("drawn", "inked")
FULL = "MUST"
ARMS: Mapping[str, Weights] = {
    FULL: Weights(),
    "pseudo-labels alone": Weights(fairness=0, masked_image=0, alignment=0),
    "without self-training": Weights(self_training=0),
    "without fairness": Weights(fairness=0),
    "without masked images": Weights(masked_image=0),
    "without alignment": Weights(alignment=0),
}
STAGES = ("before", "last", "best")
TEMPLATES = ("{}", "a {}", "a picture of a {}", "a photo of a {}")


def config() -> Config:
    """All of MUST on the set of drawings that the study wrote."""
    return Config(
        checkpoint=OUT / "demo" / "arms" / "oracle",
        data=OUT / "sets" / STYLES[0],
        out=OUT / "run",
        test_split="test",
        templates=TEMPLATES,
        scale=40.0,  # in so short a pretraining the checkpoint's own stays at its first value, 14
        image_size=48,  # half the work of 64, about the same accuracy before adaptation
        threshold=0.4,
        mask_patch=16,
        mask_ratio=0.1,
        epochs=20,
        batch=64,
        learning_rate=1e-3,
        layer_decay=0.75,
        momentum=(0.9, 0.98),
        momentum_steps=20,
        test_every=2,
        save_every=100,
    )


@dataclass(frozen=True, kw_only=True)
class MustStudyConfig:
    """The dials of the study."""

    out: Path
    """Folder to write."""
    checkpoint: str | None = None
    """What `models.towers.load` takes; None pretrains one in OUT/demo."""
    cutouts: Path | None = None
    """RGBA pictures with captions; None fetches the default ones."""
    styles: tuple[str, ...] = STYLES
    """Of the drawings."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which losses."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of views, masks and new weights; checkpoint and drawings are the same."""
    per_class: int = 11
    """Photographs a class that the checkpoint has seen, held-out ones included."""
    train: int = 60
    """Unlabelled pictures a class."""
    test: int = 40
    """Test pictures a class."""
    run: Config = field(default_factory=config)
    """What all cells have in common."""
    workers: int = 2
    """Cells at once, a processor core each."""

    def __post_init__(self) -> None:
        for kind, chosen, allowed in (
            ("arm", self.arms, tuple(ARMS)), ("style", self.styles, STYLES)
        ):  # fmt: skip
            unknown = [name for name in chosen if name not in allowed]
            if unknown:
                raise CapwrightError(
                    f"{kind} {unknown[0]!r} is unknown: allowed are {', '.join(allowed)}"
                )

    @property
    def encoder(self) -> str:
        """The checkpoint that is adapted."""
        return self.checkpoint or str(self.out / "demo" / "arms" / "oracle")

    def plan(self) -> dict[str, Any]:
        """What the folder is bound to: styles, arms and seeds can be added."""
        free = ("out", "cutouts", "styles", "arms", "seeds", "workers")
        return {k: v for k, v in as_dict(self).items() if k not in free}

    def cell(self, style: str, arm: str, seed: int) -> Config:
        """The run of a cell."""
        folder = self.out / "cells" / style / arm.replace(" ", "-") / str(seed)
        return replace(
            self.run, checkpoint=self.encoder, data=self.out / "sets" / style, out=folder,
            weights=ARMS[arm], seed=seed,
        )  # fmt: skip


def run(study: MustStudyConfig) -> dict[str, Any]:
    """Run every cell that is missing; returns what is in OUT/results.json."""
    claim(study.out, study.plan())
    prepare(study)
    cells = [
        study.cell(style, arm, seed)
        for seed in study.seeds
        for style in study.styles
        for arm in study.arms
    ]
    missing = [cell for cell in cells if not (cell.out / "results.json").exists()]
    each(must.run, missing, study.workers)
    return write_results(study)


def prepare(study: MustStudyConfig) -> None:
    """The checkpoint, if there is none, and the drawings."""
    from capwright.datasets.scenes import drawings

    if study.checkpoint is None:
        from capwright.recipes import demo_steps
        from capwright.recipes.demo import DemoConfig

        demo = DemoConfig(
            out=study.out / "demo",
            arms=("oracle",),
            cutouts=study.cutouts,
            per_class=study.per_class,
        )
        if not (demo.out / "arms" / "oracle" / "summary.json").exists():
            demo_steps.scenes(demo)
            demo_steps.pretrain(demo, "oracle")
    for style in study.styles:
        drawings.run(
            drawings.DrawingConfig(
                out=study.out / "sets" / style,
                style="drawn" if style == "drawn" else "inked",
                cutouts=study.cutouts,
                per_class=study.per_class,
                train=study.train,
                test=study.test,
            )
        )


def write_results(study: MustStudyConfig) -> dict[str, Any]:
    """results.json and results.md of the cells that are there."""
    from capwright.evaluate.results import read_results

    cells = []
    for style in STYLES:
        for arm in ARMS:
            for file in sorted((study.cell(style, arm, 0).out.parent).glob("*/results.json")):
                rows, seed = read_results(file), int(file.parent.name)
                acc1 = {row.options["stage"]: row.metrics["acc1"] for row in rows}
                cells.append({"style": style, "arm": arm, "seed": seed, **acc1})
    found = {
        "rows": rows_of(cells),
        "cells": cells,
        "config": as_dict(study),
        "versions": versions(),
        "processors": os.cpu_count(),
    }
    write_json(study.out / "results.json", found)
    with atomic_path(study.out / "results.md") as temporary:
        temporary.write_text(markdown(found["rows"]), encoding="utf-8")
    return found


def rows_of(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a style and arm: means over seeds, and the paired difference from all of MUST."""

    def last(style: str, arm: str) -> dict[int, float]:
        return {c["seed"]: c["last"] for c in cells if (c["style"], c["arm"]) == (style, arm)}

    rows = []
    for style, arm in dict.fromkeys((cell["style"], cell["arm"]) for cell in cells):
        own = [cell for cell in cells if (cell["style"], cell["arm"]) == (style, arm)]
        row: dict[str, Any] = {"style": style, "arm": arm}
        row |= {stage: summary(cell[stage] for cell in own) for stage in STAGES}
        row["above_full"] = None if arm == FULL else difference(last(style, arm), last(style, FULL))
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table a style; accuracy in percent."""
    lines: list[str] = []
    for style in dict.fromkeys(row["style"] for row in rows):
        lines += [f"`{style}`", "", f"| arm | before | last | less {FULL} | best |"]
        lines += ["|" + "---|" * 5]
        for row in (row for row in rows if row["style"] == style):
            numbers = (
                f"{100 * row['before']['mean']:.1f}",
                value(row["last"], 100, 1),
                value(row["above_full"], 100, 1, "+"),
                value(row["best"], 100, 1),
            )
            lines.append(f"| {row['arm']} | {' | '.join(numbers)} |")
        lines.append("")
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Folder to write.")
@click.option("--checkpoint", help="CLIP to adapt; without it one is pretrained on scenes.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(out: Path, checkpoint: str | None, settings: tuple[str, ...]) -> None:
    """Adapt a CLIP of photographs to drawings, with and without each loss."""
    found = run(override(MustStudyConfig(out=out, checkpoint=checkpoint), settings))
    click.echo(markdown(found["rows"]))
    click.echo(json.dumps({"cells": len(found["cells"])}))


if __name__ == "__main__":
    # classes of __main__ have another name in worker processes
    from capwright.recipes.must_scenes import command as main

    main()
