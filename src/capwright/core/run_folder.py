"""The run folder: what was planned, with which versions, and the metrics as they come.

`claim` makes a folder belong to one plan. The first run writes `manifest.json`; a rerun with the
same plan goes on where it was, and one with another plan is refused with the differences, so that
results never mix. `only_one` keeps two runs from writing to a folder at once.
"""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError
from capwright.core.files import read_json, write_json

PACKAGES = ("capwright", "torch", "open_clip_torch", "timm", "transformers", "pyarrow", "numpy")
LOCK = ".lock"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def claim(folder: Path, plan: Any) -> None:
    """Bind `folder` to `plan` (a dataclass or a mapping) or refuse.

    Raises CapwrightError when the folder holds the output of another plan; nothing is changed then.
    """
    wanted = as_dict(plan)
    path = folder / "manifest.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"digest": digest(wanted), "plan": wanted, "versions": versions()})
        return
    recorded = read_json(path).get("plan", {})
    if digest(recorded) == digest(wanted):
        return
    before, after = _flat(recorded), _flat(wanted)
    changed = sorted(
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
    )
    listed = ", ".join(f"{key} {before.get(key)!r} -> {after.get(key)!r}" for key in changed[:5])
    raise CapwrightError(
        f"{folder} was made with another plan ({listed}): "
        "choose another folder, delete this one, or go back to its plan"
    )


@contextmanager
def only_one(folder: Path) -> Iterator[str]:
    """Hold `folder` for this process while the block runs; the lock ends with the process.

    Gives who holds it, which `holder` reads on every machine that sees the folder. Raises
    CapwrightError when another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a", encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            who = f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')}"
            lock.truncate(0)
            lock.write(who)
            lock.flush()
        except BlockingIOError:
            raise CapwrightError(
                f"another run is writing to {folder} ({holder(folder)}): wait for it to end, "
                "or give this run a work folder of its own"
            ) from None
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield who


def holder(folder: Path) -> str:
    """Who held `folder` last, by `only_one`, as far as this machine can see."""
    try:
        return (folder / LOCK).read_text(encoding="utf-8")
    except OSError:
        return ""


class MetricsLog:
    """Appends one JSON object a line; each line is flushed, so a killed run loses none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append one line."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _unwritable(folder: Path, error: OSError) -> CapwrightError:
    return CapwrightError(
        f"cannot write {folder}: {error.strerror}; free space or choose a folder you may write to, "
        "then run the same command again"
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return flat
