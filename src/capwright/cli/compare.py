"""`capwright compare`: a table of results, models side by side."""

from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("sources", nargs=-1, required=True, type=PATH, metavar="RESULTS...")
@click.option(
    "--format",
    type=click.Choice(["text", "markdown", "csv", "html"]),
    default="text",
    help="How the table is written.",
)
@click.option("--out", type=PATH, help="File for the table, besides stdout.")
@click.option("--details", is_flag=True, help="Metrics of single classes as well.")
@click.option(
    "--resamples",
    type=click.IntRange(min=1),
    default=2000,
    help="Resamples of the bootstrap; AP of a large set takes seconds for a hundred.",
)
def command(**options: Any) -> None:
    """Compare results of several models in one table.

    Example: capwright compare results/runs_a results/runs_b --format markdown

    RESULTS are files that `capwright evaluate` wrote, or folders with some; the first is the
    reference. Values are means over seeds with their 95% intervals; differences have 95% intervals
    by paired bootstrap over pictures where the results of each picture were kept.
    """
    from capwright.evaluate.compare import CompareConfig, run

    click.echo(run(CompareConfig(**options)).table, nl=False)
