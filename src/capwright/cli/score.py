"""`capwright score`: how well each caption fits its picture."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--with", "way", type=click.Choice(["clip"]), default="clip", help="Kind of score.")
@click.option("--model", default="", help="open_clip checkpoint folder or MODEL/TAG to score with.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(corpus: str, work: Path, way: str, model: str, settings: tuple[str, ...]) -> None:
    """Score alt text and captions by their fit to the picture, 0 to 1."""
    from capwright.captions.score.clip import ScoreConfig, run
    from capwright.core.config import as_dict, override
    from capwright.corpus import index

    config = override(ScoreConfig(work=work, model=model), settings)
    index.run(index.IndexConfig(corpus=corpus, work=work))
    click.echo(json.dumps(as_dict(run(config))))
