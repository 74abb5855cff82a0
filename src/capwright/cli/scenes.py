"""`capwright scenes`: compose labelled pictures with noisy alt text."""

import json
from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--count", type=int, required=True, help="Number of scenes.")
@click.option("--size", default=128, show_default=True, help="Side of the pictures in pixels.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--cutouts", type=FOLDER, help="NAME.png + NAME.txt, sub-folders as classes.")
@click.option("--backgrounds", type=FOLDER, help="Photographs to crop backgrounds from.")
@click.option("--holdout", is_flag=True, help="Use the held-out quarter of each class.")
@click.option("--per-class", type=int, help="Cut-outs a class, at most (default: all).")
@click.option("--max-objects", default=3, show_default=True, help="Things in a scene, at most.")
@click.option("--human-fraction", default=0.04, show_default=True, help="Share fully captioned.")
@click.option("--shard-size", default=1000, show_default=True, help="Scenes a tar.")
@click.option("--workers", default=2, show_default=True, help="Processes.")
def command(
    out: Path,
    count: int,
    size: int,
    seed: int,
    cutouts: Path | None,
    backgrounds: Path | None,
    holdout: bool,
    per_class: int | None,
    max_objects: int,
    human_fraction: float,
    shard_size: int,
    workers: int,
) -> None:
    """Compose scenes with masks, depth and boxes."""
    from capwright.core.config import as_dict
    from capwright.datasets.scenes import SceneConfig, run

    config = SceneConfig(
        out=out,
        count=count,
        size=size,
        seed=seed,
        cutouts=cutouts,
        backgrounds=backgrounds,
        holdout=holdout,
        per_class=per_class,
        max_objects=max_objects,
        human_fraction=human_fraction,
        shard_size=shard_size,
        workers=workers,
    )
    click.echo(json.dumps(as_dict(run(config))))
