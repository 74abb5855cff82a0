"""Who holds a folder, and what a killed run left there."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, remove_partials
from capwright.core.run_folder import LOCK, holder, only_one

HOLD = """
import sys
from pathlib import Path
from capwright.core.run_folder import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_hold_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        wanted = rf"another run is writing to .*b \(process {other.pid} on .* since 2.*: wait for"
        with pytest.raises(CapwrightError, match=wanted), only_one(folder):
            pass
        other.kill()
    with only_one(folder) as who:  # the lock ended with the process
        assert who == holder(folder)
        assert who.startswith(f"process {os.getpid()} on ")


def test_an_error_inside_is_not_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), only_one(tmp_path):
        raise BlockingIOError("of the block")
    with only_one(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(CapwrightError, match=r"cannot write .*file/work: Not a directory; free"),
        only_one(tmp_path / "file" / "work"),
    ):
        pass


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK).touch()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("capwright.core.run_folder.fcntl.flock", full)
    with pytest.raises(CapwrightError, match=r"No space left on device; free"), only_one(tmp_path):
        pass
    monkeypatch.setattr("capwright.core.files.os.fsync", full)
    with pytest.raises(CapwrightError, match="No space"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_partial_files_of_killed_runs_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.parquet.0123abcd.partial").touch()
    (tmp_path / ".b.89ef0123.partial").mkdir()
    (tmp_path / ".mine.partial").touch()
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.partial"]


def test_files_whose_names_begin_alike_leave_each_other_alone(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.tar") as one, atomic_path(tmp_path / "a") as other:
        one.touch()
        other.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.tar"]
