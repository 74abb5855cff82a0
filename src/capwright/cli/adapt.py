"""`capwright adapt`: turn a CLIP into something else by the method of a paper.

NAME is a folder of capwright.adapt, which has a dataclass `Config` and `run(config)`; a recipe
gives the Config. Where a Config has one `seed` in place of `seeds`, N seeds are N runs in
OUT/SEED, whose results are joined in OUT/results.json and OUT/summary.json.
"""

import json
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from capwright import adapt, recipes
from capwright.core.errors import CapwrightError

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("name")
@click.option("--recipe", default="scenes", help="NAME_RECIPE or RECIPE in capwright.recipes.")
@click.option("--checkpoint", help="Model to adapt: a folder, hf-hub:NAME or MODEL/TAG.")
@click.option("--data", type=PATH, help="Folder of the data set.")
@click.option("--test-data", type=PATH, help="Folder of the set to test on, if another.")
@click.option("--out", type=PATH, help="Folder to write, or to go on with.")
@click.option("--seeds", type=click.IntRange(min=1), help="Runs, with seeds 0, 1, ...")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(
    name: str, recipe: str, seeds: int | None, settings: tuple[str, ...], **places: Any
) -> None:
    """Adapt a CLIP by a paper's method.

    NAME is mirror-depth (depth through a frozen CLIP), must (a classifier from unlabelled pictures)
    or zsseg (segmentation of classes without labels). A recipe is a module of capwright.recipes or
    a .py file with config(); the other options replace what it says. A killed run goes on when it
    is started again.

    Example: capwright adapt mirror-depth --checkpoint runs/a --data labelled --out runs/depth
    """
    from capwright.core.config import as_dict
    from capwright.pretrain import signals

    method = _method(name)
    config = _config(method, name, recipe, places, settings)
    try:
        summary = _run(method, config, seeds)
    except signals.Stopped as stopped:
        click.echo(f"capwright: {stopped}", err=True)
        sys.exit(signals.EXIT_CODE)
    click.echo(json.dumps(as_dict(summary)))


def names() -> list[str]:
    """What NAME may be."""
    folders = (module for module in pkgutil.iter_modules(adapt.__path__) if module.ispkg)
    return sorted(module.name.replace("_", "-") for module in folders)


def _method(name: str) -> ModuleType:
    import importlib

    if name.replace("_", "-") not in names():
        raise CapwrightError(
            f"no method is called {name!r}: capwright adapt knows {', '.join(names())}"
        )
    return importlib.import_module(f"{adapt.__name__}.{name.replace('-', '_')}")


def _config(
    method: ModuleType, name: str, recipe: str, places: dict[str, Any], settings: tuple[str, ...]
) -> Any:
    """The recipe's Config with what the options replace."""
    from dataclasses import fields, replace

    from capwright.core.config import override
    from capwright.recipes.load import load_recipe

    own = f"{name.replace('-', '_')}_{recipe}"
    known = {module.name for module in pkgutil.iter_modules(recipes.__path__)}
    config = load_recipe(own if own in known else recipe)
    if not isinstance(config, method.Config):
        raise CapwrightError(
            f"recipe {recipe!r} is not for {name}: take one whose config() returns "
            f"{method.__name__}.Config, such as {own.removesuffix(recipe)}scenes"
        )
    chosen = {key: value for key, value in places.items() if value is not None}
    unknown = sorted(chosen.keys() - {field.name for field in fields(config)})
    if unknown:
        raise CapwrightError(f"{name} has no --{unknown[0].replace('_', '-')}: leave it out")
    return override(replace(config, **chosen), settings)


def _run(method: ModuleType, config: Any, seeds: int | None) -> Any:
    from dataclasses import replace

    if seeds is None:
        return method.run(config)
    if hasattr(config, "seeds"):
        return method.run(replace(config, seeds=tuple(range(seeds))))
    return _each_seed(method, config, seeds)


def _each_seed(method: ModuleType, config: Any, seeds: int) -> dict[str, Any]:
    """Run each seed in a folder of its own, and join their results."""
    from dataclasses import replace

    from capwright.core.files import write_json
    from capwright.evaluate.results import read_results, summarise, write_results

    out: Path = config.out
    folders = {seed: out / str(seed) for seed in range(seeds)}
    summaries = {
        str(seed): method.run(replace(config, out=folder, seed=seed))
        for seed, folder in folders.items()
    }
    files = (folder / "results.json" for folder in folders.values())
    results = [result for file in files for result in read_results(file)]
    write_results(out / "results.json", results)
    write_json(out / "summary.json", summarise(results))
    return summaries
