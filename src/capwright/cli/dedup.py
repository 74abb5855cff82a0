"""`capwright dedup`: find exact and near duplicates, also of an evaluation set."""

from pathlib import Path

import click

from capwright.cli._running import show


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="WORK2",
    help="Work folder of an evaluation set, whose pictures are found too.",
)
@click.option(
    "--with",
    "way",
    type=click.Choice(["hash", "embeddings"]),
    default="hash",
    help="Perceptual hashes, or embeddings of a model.",
)
@click.option("--model", default="", help="open_clip checkpoint folder or MODEL/TAG to embed with.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(
    corpus: str, work: Path, against: Path | None, way: str, model: str, settings: tuple[str, ...]
) -> None:
    """Find pictures that are there twice, or in an evaluation set.

    Of each group the largest picture is kept. Nothing is deleted: `capwright select` drops the
    others, each with its reason.
    """
    from capwright.captions.dedup import DedupConfig, run
    from capwright.core.config import override
    from capwright.corpus import index

    config = DedupConfig(work=work, against=against, way=way, model=model)  # type: ignore[arg-type]
    config = override(config, settings)
    index.run_as_before(corpus, work)
    show(run(config))
