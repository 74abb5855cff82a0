"""A task is a model and weighted objectives; the engine trains it and knows no method.

An objective is found by its name: `capwright.pretrain.objectives.NAME.Objective`. What several of
them need (embeddings of pictures and texts, the map of patches) is computed once. Work is in the
two phases of `objective.py`: `encode` on parts of a batch, `terms` on the features of all of it.

Shapes: B pictures, V views, U captions, E embedding, D features, h and w of the map.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.models import towers
from capwright.models.kept_tokens import kept_tokens
from capwright.pretrain import objectives
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import Group
from capwright.pretrain.draws import name_seed
from capwright.pretrain.objective import BaseObjective, Features, Terms

SHARED = ("image", "text", "patches")


@dataclass(frozen=True)
class Losses:
    """The weighted sum, each objective's loss by name and what they log."""

    total: Tensor
    values: Mapping[str, Tensor]  # "contrastive", "self_distillation/teacher_entropy", …


class Task(nn.Module):
    """All parameters that train: the model and what objectives add to it."""

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.objectives = nn.ModuleDict()
        for name in config.weights:
            with torch.random.fork_rng():  # so that objectives do not disturb each other
                torch.manual_seed(name_seed(config.seed, name))
                self.objectives[name] = find_objective(name)(model, config)
        _freeze_unused(model, config)

    def forward(self, what: Literal["encode", "losses", "pull"], *arguments: Any) -> Any:
        """One of the methods below; wrappers of many processes hook into `forward` alone."""
        return getattr(self, what)(*arguments)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Phase 1: shared features and those of every active objective, for a part of a batch."""
        active = self._active(batch)
        shared = self._shared(batch, active)
        features = dict(shared)
        for objective in active.values():
            features |= objective.encode(self.model, batch, shared)
        kept = {n for o in active.values() for n in o.needs if n not in o.private}
        return {k: v for k, v in features.items() if k not in SHARED or k in kept}

    def terms(self, features: Features, batch: Batch, group: Group) -> Losses:
        """Phase 2: the losses from the features of the whole batch."""
        weights, scale = self.config.active(batch.step), self.model.logit_scale.exp()
        bias = getattr(self.model, "logit_bias", None)
        features = dict(features) if bias is None else {**features, "logit_bias": bias}
        values: dict[str, Tensor] = {}
        total = torch.zeros((), device=scale.device)
        for name, objective in self._active(batch).items():
            found: Terms = objective.loss(features, batch, scale, group)
            total = total + weights[name] * found.loss
            values[name] = found.loss
            values |= {f"{name}/{key}": value for key, value in found.logged.items()}
        return Losses(total, values)

    def losses(self, batch: Batch, group: Group) -> Losses:
        """Both phases at once."""
        return self.terms(self.encode(batch), batch, group)

    def pull(
        self,
        part: Batch,
        gradients: Features,
        whole: tuple[Features, Batch, Group, float] | None = None,
    ) -> Tensor:
        """A scalar whose gradient is that of the loss through this part's features.

        With `whole`, the loss times a factor is added, from features that are constants: it brings
        the gradient of what phase 2 itself learns.
        """
        features = self.encode(part)
        total = sum((features[k] * g).sum() for k, g in gradients.items())
        assert isinstance(total, Tensor), "no feature of the batch has a gradient"
        if whole is not None:
            constants, batch, group, factor = whole
            total = total + factor * self.terms(constants, batch, group).total
        return total

    def after_step(self, step: int) -> None:
        """Let every objective update what follows the model."""
        share = (step + 1) / self.config.steps
        for objective in self._objectives().values():
            objective.after_step(self.model, share)

    def alarms(self, values: Mapping[str, float]) -> list[str]:
        """What objectives say about the values that they logged: sentences on collapse."""
        found = []
        for name, objective in self._objectives().items():
            logged = {
                key.removeprefix(f"{name}/"): value
                for key, value in values.items()
                if key.startswith(f"{name}/")
            }
            found.append(objective.alarm(logged) if logged else "")
        return [sentence for sentence in found if sentence]

    def _objectives(self) -> dict[str, BaseObjective]:
        return {n: o for n, o in self.objectives.items() if isinstance(o, BaseObjective)}

    def _active(self, batch: Batch) -> dict[str, BaseObjective]:
        weights = self.config.active(batch.step)
        return {name: o for name, o in self._objectives().items() if name in weights}

    def _shared(self, batch: Batch, active: Mapping[str, BaseObjective]) -> dict[str, Tensor]:
        needs = {need for objective in active.values() for need in objective.needs}
        images = batch.images_BV3HH.flatten(0, 1)
        shape = batch.images_BV3HH.shape[:2]
        shared: dict[str, Tensor] = {}
        if "patches" in needs:
            image, patches = towers.embed_with_patches(self.model, images)
            shared = {"image": image.unflatten(0, shape), "patches": patches.unflatten(0, shape)}
        elif "image" in needs:
            with kept_tokens(self.model, self._kept(batch)):
                shared["image"] = towers.encode_image(self.model, images).unflatten(0, shape)
        if "text" in needs:
            shared["text"] = towers.encode_text(self.model, batch.tokens_to_encode_UL)
        return shared

    def _kept(self, batch: Batch) -> Tensor | None:
        """The patches of every view that patch dropout leaves; None for all of them."""
        if not self.config.patch_dropout:
            return None
        patches = batch.patch_order_BN.shape[1]
        kept = max(1, round(patches * (1 - self.config.patch_dropout)))
        return batch.patch_order_BN[:, :kept].repeat_interleave(batch.images_BV3HH.shape[1], dim=0)


def towers_used(config: PretrainConfig) -> set[str]:
    """Which of "image" and "text" train."""
    used = {tower for name in config.weights for tower in find_objective(name).uses}
    return used - set(config.freeze)


def reads_text(config: PretrainConfig) -> bool:
    """Whether any objective reads captions."""
    return any({"text"} & {*o.uses, *o.needs} for o in map(find_objective, config.weights))


def find_objective(name: str) -> type[BaseObjective]:
    """The class of an objective; CapwrightError for a name without a module."""
    names = sorted(module.name for module in pkgutil.iter_modules(objectives.__path__))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise CapwrightError(f"objective {name!r} is unknown: {hint}")
    found: type[BaseObjective] = importlib.import_module(f"{objectives.__name__}.{name}").Objective
    return found


def _freeze_unused(model: Any, config: PretrainConfig) -> None:
    used = towers_used(config)
    for name, tower in (("image", model.visual), ("text", model.text)):
        if name not in used:
            tower.requires_grad_(False)
    asked = {tower for name in config.weights for tower in find_objective(name).uses}
    for name, module in model.named_children():  # such as CoCa's decoder
        if name not in ("visual", "text"):
            module.requires_grad_("decoder" in asked)
    model.logit_scale.requires_grad_("scale" in asked)
    if getattr(model, "logit_bias", None) is not None:
        read = "contrastive" in config.weights and config.contrastive.form == "sigmoid"
        model.logit_bias.requires_grad_(read)
