"""Configuration: frozen dataclasses that their stage owns, changed only by `override` before a run.

`override(config, ["model.width=192"])` follows the dots through nested dataclasses, lets pydantic
convert the text to the field's type, and names the nearest field when a key is unknown. `digest`
identifies a plan in manifests.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from capwright.core.errors import CapwrightError

Config = TypeVar("Config")
_Setting = tuple[tuple[str, ...], str, str]  # path, text of the value, as it was written


def override(config: Config, assignments: Sequence[str]) -> Config:
    """Return a copy of the dataclass `config` with `"a.b=value"` assignments applied, all at once.

    Of two for the same key the later one holds. A value is read as JSON where that works
    (numbers, lists, true, null) and as plain text otherwise. Raises CapwrightError for text
    without `=`, an unknown key, or a value that the field does not accept.
    """
    settings = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise CapwrightError(
                f"setting {assignment!r} has no '=': write it as key=value, for example seed=1"
            )
        settings.append((tuple(key.strip().split(".")), text.strip(), assignment))
    return _apply(config, settings) if settings else config


def as_dict(value: Any) -> Any:
    """Turn a dataclass (nested, with paths, tuples and mappings) into what `json.dumps` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that stand for the JSON form of `value`."""
    canonical = json.dumps(as_dict(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _apply(config: Any, settings: Sequence[_Setting]) -> Any:
    """A copy with all settings at once, so that what a dataclass checks holds for all of them."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        path, _, assignment = settings[0]
        raise CapwrightError(
            f"setting {assignment!r} goes deeper than the configuration: {path[0]!r} has no parent"
        )
    names = [field.name for field in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    deeper: dict[str, list[_Setting]] = {}
    for path, text, assignment in settings:
        name = path[0]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(names)}"
            raise CapwrightError(f"setting {assignment!r} names an unknown key {name!r}: {hint}")
        if len(path) > 1:
            deeper.setdefault(name, []).append((path[1:], text, assignment))
        else:
            values[name] = _convert(get_type_hints(type(config))[name], text, assignment)
    for name, below in deeper.items():
        values[name] = _apply(values.get(name, getattr(config, name)), below)
    return dataclasses.replace(config, **values)


def _convert(kind: Any, text: str, assignment: str) -> Any:
    import pydantic

    adapter = pydantic.TypeAdapter(kind)
    try:
        return adapter.validate_json(text)
    except pydantic.ValidationError:
        pass
    try:
        return adapter.validate_python(text)
    except pydantic.ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise CapwrightError(f"setting {assignment!r} has a wrong value: {reason}") from None
