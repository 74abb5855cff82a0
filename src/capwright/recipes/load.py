"""Finds a recipe: a module of this package by its name, or a user's Python file by its path.

A recipe has a function `config()` that takes nothing and returns a configuration.
"""

import difflib
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from capwright import recipes
from capwright.core.errors import CapwrightError


def load_recipe(name_or_path: str) -> Any:
    """Return what the recipe's `config()` returns; CapwrightError where there is no such recipe."""
    if name_or_path.endswith(".py"):
        module = _from_file(Path(name_or_path))
    else:
        module = _from_package(name_or_path)
    if not callable(getattr(module, "config", None)):
        raise CapwrightError(
            f"recipe {name_or_path!r} has no function config(): "
            "it must return a configuration, as capwright.recipes.scenes_clip does"
        )
    return module.config()


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise CapwrightError(f"recipe {str(path)!r} is not a file: give the path of a Python file")
    spec = importlib.util.spec_from_file_location(f"capwright_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_package(name: str) -> ModuleType:
    names = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "for example scenes_clip"
        raise CapwrightError(
            f"recipe {name!r} is unknown: {hint}, or give the path of a Python file with config()"
        )
    return importlib.import_module(f"{recipes.__name__}.{name}")
