"""Checkpoints that open_clip loads, with what training needs to go on at the exact sample.

OUT/checkpoints/samples_000012800/   open_clip_config.json, open_clip_model.safetensors, tokenizer
                                     files, training_state.pt (optimiser, objectives, samples seen)
OUT/checkpoints/last                 relative link to the newest

A folder is written under a temporary name and renamed, so what exists is whole. The state is read
with `weights_only=True`: no code runs from a file.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, write_json
from capwright.models.towers import CONFIG_FILE, WEIGHTS_FILE, preprocess_config
from capwright.pretrain.task import Task

STATE_FILE = "training_state.pt"
KEPT = 2  # the newest ones; the last might turn out to be from a run that went wrong


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far training is."""

    samples_seen: int = 0
    seconds: float = 0.0
    loss: float = float("nan")


def write(
    folder: Path,
    *,
    task: Task,
    model_config: Mapping[str, Any],
    tokenizer_folder: Path | None,
    optimizer: torch.optim.Optimizer,
    position: Position,
) -> Path:
    """Write a checkpoint below `folder` (OUT/checkpoints), link it as `last`, drop old ones."""
    path = folder / f"samples_{position.samples_seen:09d}"
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for file in tokenizer_folder.iterdir() if tokenizer_folder else ():
            shutil.copy(file, temporary)
        config = {"model_cfg": model_config, "preprocess_cfg": preprocess_config(model_config)}
        write_json(temporary / CONFIG_FILE, config)
        weights = {k: v.detach().cpu().contiguous() for k, v in task.model.state_dict().items()}
        save_file(weights, temporary / WEIGHTS_FILE)
        state = {
            "optimizer": optimizer.state_dict(),
            "objectives": task.objectives.state_dict(),
            **vars(position),
        }
        torch.save(state, temporary / STATE_FILE)
    _link(folder / "last", path.name)
    for old in find(folder)[:-KEPT]:
        shutil.rmtree(old)
    return path


def find(folder: Path) -> list[Path]:
    """Checkpoints below OUT/checkpoints, oldest first."""
    return sorted(path for path in folder.glob("samples_*") if (path / STATE_FILE).is_file())


def read(path: Path, *, task: Task, optimizer: torch.optim.Optimizer) -> Position:
    """Load a checkpoint into task and optimiser; CapwrightError for one that does not fit."""
    device = next(task.parameters()).device
    try:
        task.model.load_state_dict(load_file(path / WEIGHTS_FILE, device=str(device)))
        state = torch.load(path / STATE_FILE, map_location=device, weights_only=True)
        task.objectives.load_state_dict(state["objectives"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise CapwrightError(
            f"checkpoint {path} does not fit this run ({type(error).__name__}: {error}): "
            "delete it to go on from the one before, or delete the run folder to start again"
        ) from error
    return Position(
        samples_seen=state["samples_seen"], seconds=state["seconds"], loss=state["loss"]
    )


def _link(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
