"""Prompts in files with a version, so that a sidecar can say what a model was asked.

Reads: NAME.txt beside this file, or a user's own .txt. The first line is `version: N`, then an
empty line, then the text; `{name}` in it is filled in by `Prompt.fill`.
"""

import difflib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from capwright.core.errors import CapwrightError

_FORM = re.compile(r"version:[ \t]*(\d+)[ \t]*\n[ \t]*\n(.*)", re.DOTALL)
_VALUE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Prompt:
    """A prompt's text, and what sidecars call it."""

    name: str
    version: int
    text: str

    @property
    def label(self) -> str:
        """Name and version, for example "describe-short/1"."""
        return f"{self.name}/{self.version}"

    def __str__(self) -> str:
        return self.label

    def fill(self, **values: object) -> str:
        """The text with every `{name}` replaced by its value, in one pass.

        A value is put in as it is, so one that has braces is not filled again. A `{name}` without
        a value stays.
        """
        return _VALUE.sub(lambda found: str(values.get(found[1], found[0])), self.text)


def load_prompt(name_or_path: str) -> Prompt:
    """Load a prompt of Capwright by its name, or a user's own by the path of its .txt.

    Raises CapwrightError for an unknown name, a missing or unreadable file, or one without its
    version or text.
    """
    if name_or_path.endswith(".txt"):
        path = Path(name_or_path)
        return _parsed(path.stem, str(path), _read(path))
    folder = files(__package__)
    names = sorted(
        entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt")
    )
    if name_or_path not in names:
        near = difflib.get_close_matches(name_or_path, names, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        raise CapwrightError(
            f"there is no prompt {name_or_path!r}: {hint} (an own prompt is a path ending in .txt)"
        )
    text = (folder / f"{name_or_path}.txt").read_text(encoding="utf-8")
    return _parsed(name_or_path, f"{name_or_path}.txt", text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CapwrightError(
            f"cannot read the prompt {path}: {error.strerror}; give the path of a text file"
        ) from None
    except UnicodeDecodeError:
        raise CapwrightError(f"the prompt {path} is not UTF-8: save it as UTF-8 text") from None


def _parsed(name: str, file: str, content: str) -> Prompt:
    found = _FORM.fullmatch(content)
    if not found or not found[2].strip():
        first = content.partition("\n")[0][:60]
        raise CapwrightError(
            f"the prompt {file} begins with {first!r}, but must begin with a line 'version: 1', "
            "then an empty line, then its text"
        )
    return Prompt(name, int(found[1]), found[2].strip())
