"""Checkpoints that open_clip loads, with what training needs to go on at the exact sample.

OUT/checkpoints/samples_000012800/   open_clip_config.json, open_clip_model.safetensors, tokenizer
                                     files, training_state.pt (optimiser, objectives, samples seen)
OUT/checkpoints/last                 relative link to the newest

With averaged weights (`ema`) the model's file holds the average, and the state the weights
themselves. A folder is written under a temporary name and renamed, so what exists is whole; a full
disk leaves the last good one. The state is read with `weights_only=True`: no code runs from a file.
Everything is stored whole and by name, whatever number of processes wrote it."""

import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, write_json
from capwright.models.towers import CONFIG_FILE, WEIGHTS_FILE
from capwright.pretrain import parallel
from capwright.pretrain.ema import AveragedWeights
from capwright.pretrain.task import Task

STATE_FILE = "training_state.pt"
UNREADABLE = (
    RuntimeError, ValueError, LookupError, TypeError, OSError,
    SafetensorError, pickle.UnpicklingError, EOFError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far training is."""

    samples_seen: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    evaluation_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """What moves while training, apart from the position."""

    task: Task
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedWeights | None = None

    def gather(self) -> dict[str, Any]:
        """Everything, whole and on the processor; every process must ask."""
        weights = _whole(self.task.model.state_dict())
        return {
            "exported": weights if self.average is None else _whole(self.average.state_dict()),
            "model": None if self.average is None else weights,
            "objectives": _whole(self.task.objectives.state_dict()),
            "optimizer": optimizer_state(self.task, self.optimizer),
            "scaler": self.scaler.state_dict(),
        }


def write(
    folder: Path,
    state: dict[str, Any],
    position: Position,
    *,
    model_config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    tokenizer_folder: Path | None,
    kept: int,
) -> Path:
    """Write what `Training.gather` gave below `folder` (OUT/checkpoints), link it as `last`, drop
    all but the newest `kept` (0 keeps all).

    Raises CapwrightError where the disk is full or cannot be written; older checkpoints stay.
    """
    path = folder / f"samples_{position.samples_seen:09d}"
    state = dict(state)
    weights = state.pop("exported")
    try:
        with atomic_path(path) as temporary:
            temporary.mkdir()
            for file in tokenizer_folder.iterdir() if tokenizer_folder else ():
                shutil.copy(file, temporary)
            config = {"model_cfg": model_config, "preprocess_cfg": preprocess}
            write_json(temporary / CONFIG_FILE, config)
            save_file(weights, temporary / WEIGHTS_FILE)
            torch.save({**state, **asdict(position)}, temporary / STATE_FILE)
        _link(folder / "last", path.name)
    except (OSError, RuntimeError, SafetensorError) as error:  # all say that a disk is full
        good = find(folder)
        raise CapwrightError(
            f"cannot write checkpoint {path} ({error}): free space and run the same command again, "
            f"it goes on from {good[-1].name if good else 'the start'}"
        ) from error
    for old in find(folder)[:-kept] if kept else ():
        shutil.rmtree(old)
    return path


def find(folder: Path) -> list[Path]:
    """Checkpoints below OUT/checkpoints, oldest first."""
    numbered = {
        int(number): path
        for path in folder.glob("samples_*")
        if (number := path.name.removeprefix("samples_")).isdecimal()
        and (path / STATE_FILE).is_file()
    }
    return [numbered[number] for number in sorted(numbered)]  # from 10 digits on, not as names sort


def read(path: Path, training: Training) -> Position:
    """Load a checkpoint; CapwrightError for one that is damaged or does not fit."""
    task = training.task
    try:
        exported = load_file(path / WEIGHTS_FILE)
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
        _load(task.model, exported if training.average is None else state["model"])
        _load(task.objectives, state["objectives"])
        load_optimizer_state(task, training.optimizer, state["optimizer"])
        training.scaler.load_state_dict(state["scaler"])
        if training.average is not None:
            training.average.load_state_dict(exported)
        return Position(**{name: state[name] for name in asdict(Position())})
    except UNREADABLE as error:
        # of an unknown content torch says at length how to run it
        why = "no state" if isinstance(error, pickle.UnpicklingError) else str(error)
        raise CapwrightError(
            f"checkpoint {path} is damaged or does not fit this run ({type(error).__name__}: {why})"
            ": delete it to go on from the one before, or delete the run folder to start again"
        ) from error


def optimizer_state(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Moments by the names of their parameters, whole; every process must ask."""
    states = ((name, optimizer.state.get(p)) for name, p in task.named_parameters())
    return {name: _whole(state) for name, state in states if state}


def load_optimizer_state(
    task: nn.Module, optimizer: torch.optim.Optimizer, states: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Take over what `optimizer_state` gave."""
    for name, parameter in task.named_parameters():
        for key, value in states.get(name, {}).items():
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} has {tuple(parameter.shape)}, not {tuple(value.shape)}")
            own = torch.zeros_like(parameter) if value.ndim else value.to(parameter.device)
            if value.ndim:
                parallel.put(own, value)
            optimizer.state[parameter][key] = own


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    if own.keys() != state.keys():
        different = sorted(own.keys() ^ state.keys())
        raise ValueError(f"other tensors: {', '.join(different[:3])}")
    for name, target in own.items():
        if target.shape != state[name].shape:
            raise ValueError(f"{name} has {tuple(target.shape)}, not {tuple(state[name].shape)}")
        parallel.put(target, state[name])


def _whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: parallel.full(value.detach()).cpu().contiguous() for name, value in state.items()}


def _link(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
