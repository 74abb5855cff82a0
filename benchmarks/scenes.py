"""Scenes per second at 128 px with two processes, against the target of 300.

Run: python benchmarks/scenes.py. The last line is JSON with `ratio`, `target` and `ok`.
"""

import json
import tempfile
from pathlib import Path

from capwright.datasets.scenes import SceneConfig, run

COUNT = 4000
WANTED = 300.0  # scenes per second


def main() -> None:
    """Compose scenes into a temporary folder and print the rate."""
    with tempfile.TemporaryDirectory() as folder:
        summary = run(SceneConfig(out=Path(folder) / "scenes", count=COUNT, size=128, workers=2))
    rate = summary.scenes_per_second or 0.0
    ratio = round(rate / WANTED, 2)
    report = {"name": "scenes", "scenes_per_second": rate, "ratio": ratio, "target": 1.0}
    print(json.dumps({**report, "ok": ratio >= 1.0}))


if __name__ == "__main__":
    main()
