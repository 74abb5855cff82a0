"""`capwright select`: keep, replace or drop captions, with reasons that are counted."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(corpus: str, work: Path, settings: tuple[str, ...]) -> None:
    """Keep, replace or drop captions by their scores."""
    from capwright.captions.select import SelectConfig, run
    from capwright.core.config import as_dict, override
    from capwright.corpus import index

    config = override(SelectConfig(work=work), settings)
    index.run(index.IndexConfig(corpus=corpus, work=work))
    click.echo(json.dumps(as_dict(run(config))))
