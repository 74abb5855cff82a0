"""Files that are either complete or absent: write under a temporary name, then rename."""

import errno
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from capwright.core.errors import CapwrightError

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
TOKEN = "[0-9a-f]" * 8  # as a glob pattern


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path (for a file or a folder) that becomes `path` when the block ends well.

    On an error the temporary is removed and `path` stays as it was. An existing folder is
    replaced, and what a killed run left for `path` is cleared first. No two calls share a
    temporary, so that a process thought dead cannot spoil the file of its successor. Raises
    CapwrightError when the place cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{glob.escape(path.name)}.{TOKEN}.partial"):
            _remove(stale)
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            if file.is_file():
                _to_disk(file)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise CapwrightError(
                f"cannot write {path}: {os.strerror(error.errno)}; "
                "free space or choose a folder you may write to, then run the same command again"
            ) from error
        raise


def remove_partials(folder: Path) -> None:
    """Remove what killed runs left half-written in `folder`; for the one who holds the folder."""
    for stale in folder.glob(f".*.{TOKEN}.partial"):
        _remove(stale)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is a CapwrightError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CapwrightError(f"{path} does not exist: run the step that writes it first") from None
    except ValueError as error:
        raise CapwrightError(
            f"{path} is not valid JSON ({error}): delete it and run again"
        ) from None


def _to_disk(path: Path) -> None:
    """Wait until the bytes are on the disk: some file systems say only now that it is full."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
