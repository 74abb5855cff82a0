"""`capwright pretrain`: train two encoders on pictures and captions, by a recipe."""

import json
import sys

import click


@click.command()
@click.argument("recipe")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    help="Go on from the last checkpoint (auto, the default) or refuse to.",
)
@click.option(
    "--eval",
    "evaluations",
    multiple=True,
    metavar="NAME=DATA",
    help="Measure every checkpoint: retrieval=WORK, classification=WORK, dense=LABELLED,TEST.",
)
@click.option(
    "--profile",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Show where the time of so many steps goes, and train no further.",
)
def command(
    recipe: str,
    settings: tuple[str, ...],
    resume: str | None,
    evaluations: tuple[str, ...],
    profile: int | None,
) -> None:
    """Pretrain encoders by a recipe.

    RECIPE is a name in capwright.recipes or the path of a .py file with config(). Many processes:
    torchrun --nproc-per-node N -m capwright pretrain RECIPE.
    """
    from capwright.core.config import as_dict, override
    from capwright.evaluate.during_training import evaluators
    from capwright.pretrain import engine, signals
    from capwright.recipes.load import load_recipe

    chosen = [*settings, *([f"resume={resume}"] if resume else [])]
    config = override(load_recipe(recipe), chosen)
    if profile is not None:
        click.echo(engine.profile(config, steps=profile))
        return
    try:
        summary = engine.run(config, evaluators(evaluations))
    except signals.Stopped as stopped:
        click.echo(f"capwright: {stopped}", err=True)
        sys.exit(signals.EXIT_CODE)
    click.echo(json.dumps(as_dict(summary)))
