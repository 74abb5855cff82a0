"""`capwright doctor`: one page on what is in a corpus and what will go wrong with it."""

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("corpus")
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Work folder; holds the index."
)
@click.option(
    "--workers", default=1, show_default=True, help="Loading workers of each training process."
)
@click.option("--ranks", default=1, show_default=True, help="Processes of the training.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a page.")
def command(corpus: str, work: Path, workers: int, ranks: int, as_json: bool) -> None:
    """Say what a corpus holds and what will go wrong later.

    Makes the index where there is none; run `capwright index` first where columns or suffixes
    have to be named. Exit code 1 if a training would hang or lose samples without a word.
    """
    from capwright.captions.doctor import DoctorConfig, run
    from capwright.captions.doctor_report import page
    from capwright.core.config import as_dict

    report = run(DoctorConfig(corpus=corpus, work=work, workers=workers, ranks=ranks))
    if as_json:
        click.echo(json.dumps(as_dict(report), ensure_ascii=False))
    else:
        click.echo(page(report))
    if report.problems:
        sys.exit(1)
