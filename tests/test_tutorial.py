"""docs/tutorials/improve_captions.md runs from top to bottom, through the real command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "improve_captions.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} == {"python", "bash"} and len(blocks) >= 8
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for language, code in blocks:
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
        ran = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
    assert (tmp_path / "work" / "audit" / "audit.html").stat().st_size > 10_000
