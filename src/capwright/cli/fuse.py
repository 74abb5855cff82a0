"""`capwright fuse`: one caption from alt text and description, nothing invented."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--with", "way", type=click.Choice(["rules"]), default="rules", help="Way to fuse.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(corpus: str, work: Path, way: str, settings: tuple[str, ...]) -> None:
    """Fuse alt text and description into one caption."""
    from capwright.captions.fuse.rules import FuseConfig, run
    from capwright.core.config import as_dict, override
    from capwright.corpus import index

    config = override(FuseConfig(work=work), settings)
    index.run(index.IndexConfig(corpus=corpus, work=work))
    click.echo(json.dumps(as_dict(run(config))))
