"""`capwright segment`: a label at every pixel of any photo, from words alone."""

import json
from pathlib import Path

import click

METHODS = (
    "clip", "maskclip", "sclip", "clearclip", "naclip", "gem", "resclip", "scclip", "contrast",
)  # fmt: skip


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--classes",
    required=True,
    help="Words with commas, names of one class with bars: 'background, dog|puppy, green grass'.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("segmented"), help="Folder.")
@click.option(
    "--model",
    default="ViT-B-16/openai",
    help="Checkpoint or run folder, hf-hub:ORG/NAME or open_clip MODEL/TAG (default: MIT licence).",
)
@click.option("--method", type=click.Choice(METHODS), default="contrast", help="How to read CLIP.")
@click.option("--refine", is_flag=True, help="Follow the edges of the picture (PAMR).")
@click.option("--window", type=int, help="Side in pixels of the windows; 0 is the whole picture.")
@click.option("--short-side", type=int, help="Pixels that the shorter side is brought to.")
@click.option("--threshold", default=0.0, help="Below this score a pixel is of the first class.")
@click.option(
    "--area-threshold",
    default=0.0,
    help="A class with no more than this share of the pixels beyond the first class is left out.",
)
@click.option("--logit-scale", type=float, help="Factor on cosines before the softmax over names.")
def command(
    photos: tuple[Path, ...],
    classes: str,
    out: Path,
    model: str,
    method: str,
    refine: bool,
    window: int | None,
    short_side: int | None,
    threshold: float,
    area_threshold: float,
    logit_scale: float | None,
) -> None:
    """Label every pixel of PHOTOS with one of the words in --classes.

    Writes NAME.png (labels), NAME_overlay.png and NAME.json for each photo. No training: the model
    is any CLIP with a vision transformer. A first class called `background` takes what nothing
    else stands out from.
    """
    from capwright.core.config import as_dict
    from capwright.dense.training_free.photos import SegmentConfig, run

    given = {"window": window, "short_side": short_side, "logit_scale": logit_scale}
    config = SegmentConfig(
        photos=photos,
        classes=classes,
        out=out,
        model=model,
        method=method,
        changes={
            "pamr": refine,
            "probability_threshold": threshold,
            "area_threshold": area_threshold,
            **{name: value for name, value in given.items() if value is not None},
        },
    )
    click.echo(json.dumps(as_dict(run(config))))
