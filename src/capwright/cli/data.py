"""`capwright data`: list the labelled sets, check a folder, convert labels."""

import json
from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """List labelled data sets, check a folder, convert labels.

    `list` names the sets. `check NAME FOLDER` counts what FOLDER holds of the set NAME and says in
    one sentence each what is missing or mislabelled. `convert NAME FOLDER` writes labels in the
    form that is read, beside the raw ones.
    """


@command.command("list")
def list_() -> None:
    """The sets' names with their splits, the usual one to evaluate on first."""
    from capwright.datasets import NAMES, module_of

    for name in NAMES:
        module = module_of(name)
        can = ", can be converted" if hasattr(module, "convert") else ""
        click.echo(f"{name}: {', '.join(module.SPLITS)}{can}")


@command.command()
@click.argument("name")
@click.argument("folder", type=FOLDER)
@click.option("--split", help="Which part (default: the usual one to evaluate on).")
def check(name: str, folder: Path, split: str | None) -> None:
    """Count what FOLDER holds of the set NAME and say what is wrong.

    Prints a JSON line with the counts; each problem is a sentence on stderr, and then the exit
    code is 2.
    """
    from capwright.datasets.inspection import inspect

    found = inspect(name, folder, split)
    click.echo(json.dumps(found.facts))
    for problem in found.problems:
        click.echo(f"capwright: {problem}", err=True)
    if found.problems:
        raise click.exceptions.Exit(2)


@command.command()
@click.argument("name")
@click.argument("folder", type=FOLDER)
def convert(name: str, folder: Path) -> None:
    """Write labels in the form that is read, beside the raw ones.

    A run that was cut off goes on where it stopped.
    """
    from capwright.core.config import as_dict
    from capwright.datasets.inspection import convert as convert_set

    click.echo(json.dumps(as_dict(convert_set(name, folder))))
