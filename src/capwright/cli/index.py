"""`capwright index`: read every shard once and store where its samples are."""

import json
from pathlib import Path

import click

FORMATS = ("auto", "webdataset", "delimited", "tables", "huggingface", "folder")


@click.command()
@click.argument("corpus")
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Work folder to write."
)
@click.option("--format", type=click.Choice(FORMATS), default="auto", help="What lies there.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Column of the text, picture or key, such as text=re_caption; repeatable.",
)
@click.option("--separator", default="", help="Of a CSV file; guessed when left out.")
@click.option("--text-suffix", default="txt", help="Of the file or member with the alt text.")
@click.option("--shard-rows", default=10_000, help="Samples a shard where there are no tars.")
@click.option("--workers", default=1, help="Processes.")
@click.option("--max-failure-rate", default=0.05, show_default=True, help="Stop above this share.")
def command(
    corpus: str,
    work: Path,
    format: str,
    columns: tuple[str, ...],
    separator: str,
    text_suffix: str,
    shard_rows: int,
    workers: int,
    max_failure_rate: float,
) -> None:
    """Index a corpus: keys, byte offsets, alt text, sizes, hashes.

    CORPUS is a folder, a file or a pattern such as 's3://bucket/{00000..01242}.tar', several joined
    by '::': WebDataset tars, CSV or TSV, parquet, a Hugging Face `datasets` folder, or pictures.
    """
    from capwright.core.config import as_dict
    from capwright.corpus.index import IndexConfig, run
    from capwright.corpus.reader import ReadOptions, parse_columns

    options = ReadOptions(
        columns=parse_columns(columns),
        separator=separator,
        shard_rows=shard_rows,
        text_suffix=text_suffix,
    )
    config = IndexConfig(
        corpus=corpus,
        work=work,
        format=format,
        read=options,
        workers=workers,
        max_failure_rate=max_failure_rate,
    )
    click.echo(json.dumps(as_dict(run(config))))
