"""What `atomic_path` waits for."""

import os
from pathlib import Path

import pytest

from capwright.core.files import atomic_path


def test_a_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        assert not (tmp_path / "made").exists()
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_path(tmp_path / "made") as temporary:
        (temporary / "below").mkdir(parents=True)
        for file in ("one", "below/two"):
            (temporary / file).write_text("x")
        (temporary / "nowhere").symlink_to("gone")
    assert sorted(synced) == ["one", "two"]
    assert (tmp_path / "made" / "below" / "two").read_text() == "x"
