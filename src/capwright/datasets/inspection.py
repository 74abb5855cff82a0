"""What a folder holds of a set: counts and problems; and the conversion of its labels.

Reads the folder. `inspect` writes nothing; `convert` writes labels beside the raw ones. Commands:
`capwright data check NAME FOLDER` and `capwright data convert NAME FOLDER`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capwright.core.errors import CapwrightError
from capwright.datasets import NAMES, module_of, split_of
from capwright.datasets.label_pictures import Converted


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a check found; no problem means that the set is good."""

    facts: dict[str, Any]
    problems: tuple[str, ...]


def inspect(name: str, folder: Path, split: str | None = None) -> Found:
    """Counts of a set (as far as it loads) and every problem."""
    module = module_of(name)
    split = split_of(name, module, split)
    if not folder.is_dir():
        raise CapwrightError(f"{folder} is not a folder: give the one that holds {name}")
    facts: dict[str, Any] = {"name": name, "split": split}
    problems = list(module.check(folder, split))
    try:
        loaded = module.load(folder, split)
        facts["items"] = len(loaded)
        if hasattr(loaded, "classes"):
            facts["classes"] = len(loaded.classes)
    except CapwrightError as error:
        if not problems:
            problems.append(str(error))
    return Found(facts=facts, problems=tuple(problems))


def convert(name: str, folder: Path) -> Converted:
    """Write the labels that `load` reads; a set without a conversion is a CapwrightError."""
    module = module_of(name)
    if not hasattr(module, "convert"):
        can = ", ".join(other for other in NAMES if hasattr(module_of(other), "convert"))
        raise CapwrightError(f"{name} is read as it comes; conversions are there for {can}")
    converted: Converted = module.convert(folder)
    return converted
