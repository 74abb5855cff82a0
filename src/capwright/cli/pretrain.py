"""`capwright pretrain`: train two encoders on pictures and captions, by a recipe."""

import json

import click


@click.command()
@click.argument("recipe")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    help="Go on from the last checkpoint (auto, the default) or refuse to.",
)
def command(recipe: str, settings: tuple[str, ...], resume: str | None) -> None:
    """Pretrain encoders by a recipe.

    RECIPE is a name in capwright.recipes or the path of a .py file with config().
    """
    from capwright.core.config import as_dict, override
    from capwright.pretrain.engine import run
    from capwright.recipes.load import load_recipe

    chosen = [*settings, *([f"resume={resume}"] if resume else [])]
    summary = run(override(load_recipe(recipe), chosen))
    click.echo(json.dumps(as_dict(summary)))
