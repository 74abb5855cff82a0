"""`capwright index`: read every shard once and store where its samples are."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("corpus")
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Work folder to write."
)
@click.option("--max-failure-rate", default=0.05, show_default=True, help="Stop above this share.")
def command(corpus: str, work: Path, max_failure_rate: float) -> None:
    """Index a corpus: keys, byte offsets, alt text, sizes, hashes."""
    from capwright.core.config import as_dict
    from capwright.corpus.index import IndexConfig, run

    summary = run(IndexConfig(corpus=corpus, work=work, max_failure_rate=max_failure_rate))
    click.echo(json.dumps(as_dict(summary)))
