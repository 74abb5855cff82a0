"""`capwright transfer`: an encoder learns a task from labels, few or many, by a recipe."""

import json
import sys
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
TASKS = ("segmentation", "depth", "normals", "classification", "detection")


def _numbers(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    """Numbers with commas between them."""
    try:
        return text and tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers such as 0.1,0.5,1") from None


@click.group()
def command() -> None:
    """Let an encoder learn a task from labels and test it.

    Example: capwright transfer segmentation scenes_segmentation --checkpoint runs/a --data scenes
    --out runs/a_seg --fractions 0.05,0.2,1 --seeds 3

    `curve` draws the results of several encoders over the number of labels.
    """


def _add(task: str) -> None:
    """The subcommand of a task: they differ in their recipes."""

    @command.command(task, help=f"Learn {task} by a recipe and test it.")
    @click.argument("recipe")
    @click.option("--checkpoint", help="Encoder: a folder, MODEL/TAG, timm:NAME or `scratch`.")
    @click.option("--data", type=PATH, help="Folder of the data set.")
    @click.option("--out", type=PATH, help="Folder of results.")
    @click.option(
        "--fractions", metavar="A,B,...", callback=_numbers, help="Shares of the training items."
    )
    @click.option("--seeds", type=click.IntRange(min=1), help="Runs, with seeds 0, 1, ...")
    @click.option("--workers", type=click.IntRange(min=0), help="Processes that read items.")
    @click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a field.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
    def learn(recipe: str, settings: tuple[str, ...], as_json: bool, **options: Any) -> None:
        """Run a recipe."""
        from capwright.core.config import as_dict
        from capwright.evaluate.transfer.task import run
        from capwright.pretrain import signals
        from capwright.recipes.transfer_plan import transfer_plan
        from capwright.report import learning_curves

        config = transfer_plan(task, recipe, options, settings)
        try:
            summary = run(config)
        except signals.Stopped as stopped:
            click.echo(f"capwright: {stopped}", err=True)
            sys.exit(signals.EXIT_CODE)
        many = len(config.fractions) > 1
        curves = learning_curves.run([config.out], to=config.out / "curve.svg" if many else None)
        click.echo(json.dumps(as_dict(summary)) if as_json else curves.table, nl=as_json)


for _task in TASKS:
    _add(_task)


@command.command()
@click.argument("sources", nargs=-1, required=True, type=PATH, metavar="OUT...")
@click.option("--to", type=PATH, help="SVG to write.")
@click.option("--metric", help="Of the results; the task's usual one without.")
@click.option("--dataset", help="Set with its split, such as scenes-seen; the first without.")
def curve(sources: tuple[Path, ...], **options: Any) -> None:
    """Draw the results of several encoders over the number of labels, and print them."""
    from capwright.report.learning_curves import run

    click.echo(run(sources, **options).table, nl=False)
