"""`capwright report`: a run folder becomes one HTML file."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file to write. [default: RUN_FOLDER/report.html]",
)
@click.option("--max-examples", default=12, help="Caption examples to show.")
@click.option("--max-pictures", default=6, help="Pictures of each test split to show.")
def command(run_folder: Path, out: Path | None, max_examples: int, max_pictures: int) -> None:
    """Write the report of a run: one self-contained HTML file."""
    from capwright.core.config import as_dict
    from capwright.report.page import ReportConfig, run

    config = ReportConfig(
        run=run_folder, out=out, max_examples=max_examples, max_pictures=max_pictures
    )
    click.echo(json.dumps(as_dict(run(config))))
