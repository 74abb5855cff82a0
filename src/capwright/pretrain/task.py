"""A task is a model and weighted objectives; the engine trains it and knows no method.

An objective is found by its name: `capwright.pretrain.objectives.NAME.Objective`.
"""

import difflib
import importlib
import pkgutil
from typing import Any

from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.pretrain import objectives
from capwright.pretrain.batches import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import Group


class Task(nn.Module):
    """All parameters that train: the model and what objectives add to it."""

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__()
        self.model = model
        self.weights = dict(config.objectives)
        self.objectives = nn.ModuleDict(
            {name: find_objective(name)(model, config) for name in self.weights}
        )
        used = towers_used(config)
        model.visual.requires_grad_("image" in used)
        model.text.requires_grad_("text" in used)
        model.logit_scale.requires_grad_({"image", "text"} <= used)

    def forward(self, batch: Batch, group: Group) -> dict[str, Tensor]:
        """Every objective's loss by name, and their weighted sum as "loss"."""
        losses = {name: task(self.model, batch, group) for name, task in self.objectives.items()}
        total = sum(self.weights[name] * loss for name, loss in losses.items())
        return {"loss": total, **losses}


def towers_used(config: PretrainConfig) -> set[str]:
    """Which of "image" and "text" the objectives train."""
    return {tower for name in config.objectives for tower in find_objective(name).uses}


def find_objective(name: str) -> Any:
    """The class of an objective; CapwrightError for a name without a module."""
    names = sorted(module.name for module in pkgutil.iter_modules(objectives.__path__))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise CapwrightError(f"objective {name!r} is unknown: {hint}")
    return importlib.import_module(f"{objectives.__name__}.{name}").Objective
