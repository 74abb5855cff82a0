"""`capwright export`: a checkpoint in the form that another library reads."""

import json
from pathlib import Path

import click

FORMATS = ("open_clip", "huggingface", "timm", "onnx")


@click.command()
@click.argument("checkpoint")
@click.option("--to", type=click.Choice(FORMATS), required=True, help="Form to write.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder to write.")
@click.option(
    "--model",
    metavar="NAME",
    help="Of a .pt file: an open_clip name, nano, or a JSON file with a configuration.",
)
def command(checkpoint: str, to: str, out: Path, model: str | None) -> None:
    """Write a checkpoint for another library.

    CHECKPOINT is a checkpoint or run folder, hf-hub:ORG/REPOSITORY, an open_clip MODEL/TAG, or a
    .pt file of open_clip's training with --model. What was written is loaded again and compared
    with the checkpoint.

    Example: capwright export runs/a --to huggingface --out a-clip
    """
    from capwright.core.config import as_dict
    from capwright.export import ExportConfig, run

    config = ExportConfig(checkpoint=checkpoint, to=to, out=out, model=model)
    click.echo(json.dumps(as_dict(run(config))))
