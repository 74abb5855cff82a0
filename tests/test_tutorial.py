"""The tutorials run from top to bottom, through the real command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(name: str, folder: Path) -> int:
    """Run every block of Python and bash in the folder; returns how many there are."""
    blocks = BLOCK.findall((PAGES / name).read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} == {"python", "bash"}
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for language, code in blocks:
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
        ran = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
    return len(blocks)


@pytest.mark.slow
def test_captions_are_improved_from_top_to_bottom(tmp_path: Path) -> None:
    assert run_page("improve_captions.md", tmp_path) >= 8
    assert (tmp_path / "work" / "audit" / "audit.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_photo_is_segmented_from_top_to_bottom(tmp_path: Path) -> None:
    assert run_page("segment_a_photo.md", tmp_path) >= 6
    written = [path.name for path in (tmp_path / "segmented").iterdir()]
    assert {Path(name).suffix for name in written} == {".png", ".json"}
    assert any(name.endswith("_overlay.png") for name in written)
