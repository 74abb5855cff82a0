"""open_clip's own training loop, `open_clip_train.main`, in a process of its own.

Reads WebDataset tars. Returns what open_clip logs of every step; its checkpoint stays in FOLDER
where one is asked for.

webdataset 1 marks the end of a tar by an empty sample, on which open_clip_train 3.3 fails; the
launcher asks webdataset to leave the mark out. `in_order` makes its shuffle buffers one sample
long. Nothing else is changed.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LAUNCH = """
import sys
import capwright.models, open_clip
if sys.argv[1]:
    open_clip.add_model_config(sys.argv[1])
from functools import partial
from open_clip_train import data
data.tar_file_expander = partial(data.tar_file_expander, eof_value=None)
if sys.argv[2]:
    data._SHARD_SHUFFLE_SIZE = data._SHARD_SHUFFLE_INITIAL = 1
    data._SAMPLE_SHUFFLE_SIZE = data._SAMPLE_SHUFFLE_INITIAL = 1
from open_clip_train.main import main
main(sys.argv[3:])
"""
STEP = re.compile(r"Data \(t\): ([\d.]+) .* ([\d.e+]+)/s, .* Loss: ([\d.]+) \(")
CHECKPOINT = "checkpoints/epoch_{}.pt"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a run."""

    seconds: float
    loss: float


def run(
    folder: Path,
    tars: Path,
    options: dict[str, object],
    *,
    batch: int,
    threads: int,
    model_configs: Path | None = None,
    save: bool = False,
    in_order: bool = False,
) -> list[Step]:
    """Train as `options` say (`{"lr": 1e-3}` is `--lr 0.001`) on all tars of a folder."""
    names = sorted(file.stem for file in tars.glob("*.tar"))
    fixed = {
        "train-data": f"{tars}/{{{names[0]}..{names[-1]}}}.tar",
        "dataset-type": "webdataset",
        "batch-size": batch,
        "precision": "fp32",
        "device": "cpu",
        "log-every-n-steps": 1,
        "logs": "runs" if save else "none",  # what open_clip takes for "save nothing"
        "name": "run",
    }
    arguments = [str(part) for k, v in (fixed | options).items() for part in (f"--{k}", v)]
    folder.mkdir(parents=True, exist_ok=True)
    switches = [str(model_configs or ""), "in order" if in_order else ""]
    command = [sys.executable, "-c", LAUNCH, *switches, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"open_clip_train failed:\n{done.stderr[-3000:]}")
    log = (run_folder(folder, save=save) / "out.log").read_text(encoding="utf-8")
    found = [STEP.search(line) for line in log.splitlines() if "Train Epoch:" in line]
    steps = [(float(m[2]), float(m[3])) for m in found if m]
    return [Step(seconds=batch / rate, loss=loss) for rate, loss in steps]


def run_folder(folder: Path, *, save: bool) -> Path:
    """Where a run in FOLDER writes."""
    return folder / ("runs" if save else "none") / "run"
