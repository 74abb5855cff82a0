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


def override(config: Config, assignments: Sequence[str]) -> Config:
    """Return a copy of the dataclass `config` with `"a.b=value"` assignments applied.

    A value is read as JSON where that works (numbers, lists, true, null) and as plain text
    otherwise. Raises CapwrightError for text without `=`, an unknown key, or a value that the
    field does not accept.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise CapwrightError(
                f"setting {assignment!r} has no '=': write it as key=value, for example seed=1"
            )
        config = _set(config, key.strip().split("."), text.strip(), assignment)
    return config


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


def _set(config: Any, path: list[str], text: str, assignment: str) -> Any:
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise CapwrightError(
            f"setting {assignment!r} goes deeper than the configuration: {path[0]!r} has no parent"
        )
    names = [field.name for field in dataclasses.fields(config)]
    if path[0] not in names:
        near = difflib.get_close_matches(path[0], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(names)}"
        raise CapwrightError(f"setting {assignment!r} names an unknown key {path[0]!r}: {hint}")
    current = getattr(config, path[0])
    if len(path) > 1:
        value = _set(current, path[1:], text, assignment)
    else:
        value = _convert(get_type_hints(type(config))[path[0]], text, assignment)
    return dataclasses.replace(config, **{path[0]: value})


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
