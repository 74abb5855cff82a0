"""`capwright describe`: write captions for the pictures of a corpus."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--with", "backend", type=click.Choice(["small"]), default="small", help="Captioner.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(corpus: str, work: Path, backend: str, settings: tuple[str, ...]) -> None:
    """Describe every picture, several captions each."""
    from capwright.captions.describe.small import DescribeConfig, run
    from capwright.core.config import as_dict, override
    from capwright.corpus import index

    config = override(DescribeConfig(work=work), settings)
    index.run(index.IndexConfig(corpus=corpus, work=work))
    click.echo(json.dumps(as_dict(run(config))))
