"""Any image encoder as a backbone: feature maps of several depths, at any size, frozen or learning.

`load_backbone` takes what `models.towers.load` takes (checkpoint and run folders, open_clip's
MODEL/TAG, hf-hub:ORG/REPOSITORY) and `timm:NAME`, a bare timm model with its published weights
(`timm:vit_base_patch16_224.mae`), or with those of a file (`timm:NAME@weights.safetensors`).
None stands for fresh weights. Writes nothing.

A plain encoder (a vision transformer) has one stride; a hierarchical one (MCi, ConvNeXt, ResNet)
has stages, of which the last four at most are given. Maps of a vision transformer pass its final
norm at every depth.

Shapes: B pictures, H and W pixels, D features of a level, h and w of its grid, E embedding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.dense.layerwise import layered_parameters
from capwright.models import towers
from capwright.models.image_sizes import allow_any_size, at_size

TIMM = "timm:"
RANDOM = "random"  # in place of a checkpoint's name: fresh weights
STAGES = 4  # at most, of a hierarchical encoder
Depths = Literal["last", "spread"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights of a backbone come from."""

    name: str  # of the tower
    pretrained: str  # checkpoint, or RANDOM


class Backbone(nn.Module):
    """Pictures, normalised, to feature maps, finest first.

    `depths` of a plain encoder is "last" (its last map alone) or "spread" (after each quarter or so
    of the upper two thirds of its blocks: 3, 5, 7 and 11 of twelve). `multiple` is what both sides
    of a picture must be divisible by.
    """

    def __init__(
        self,
        visual: nn.Module,
        origin: Origin,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        image_size: int,
        depths: Depths = "last",
    ) -> None:
        super().__init__()
        allow_any_size(visual)
        self.visual, self.origin, self.image_size = visual, origin, image_size
        self.mean, self.std = mean, std
        self.frozen = self.still_norms = False
        count = towers.layers(visual)
        self.levels = tuple(range(count))[-STAGES:]
        shapes = self._shapes()
        strides = tuple(round(image_size / height) for _, height in shapes)
        self.plain = len(set(strides)) == 1
        if self.plain:
            self.levels = (count - 1,) if depths == "last" else spread(count)
            shapes = self._shapes()
        self.channels = tuple(depth for depth, _ in shapes)
        steps = [image_size / height for _, height in shapes]
        # stages halve; at 176 pixels the last of 32 has 5.5 cells, rounded up
        self.strides = tuple(round(s) if self.plain else 2 ** round(math.log2(s)) for s in steps)
        self.multiple = self.strides[-1]

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Maps [B, D, h, w], one a level, finest first."""
        visual: Any = self.visual
        images_B3HW = images_B3HW.contiguous()
        options: dict[str, Any] = {"indices": list(self.levels), "output_fmt": "NCHW"}
        options |= {"intermediates_only": True, "stop_early": True}
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen),
            at_size(visual, *images_B3HW.shape[-2:]),
        ):
            if hasattr(visual, "feature_info"):  # a timm model on its own
                maps: list[Tensor] = visual.forward_intermediates(images_B3HW, norm=True, **options)
                return maps
            norm = getattr(visual, "attn_pool", None) is None  # as towers.dense_features has it
            out = visual.forward_intermediates(images_B3HW, normalize_intermediates=norm, **options)
            maps = out["image_intermediates"]
            return maps

    def pooled(self, images_B3HW: Tensor) -> Tensor:
        """The picture's own vector [B, E]: CLIP's embedding, or what timm pools."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return towers.encode_image(self.visual, images_B3HW)

    def normalised(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels, uint8 or 0 to 1, to what the encoder takes."""
        scaled = pixels_B3HW.float() / (255 if pixels_B3HW.dtype == torch.uint8 else 1)
        mean, std = (scaled.new_tensor(value).view(1, 3, 1, 1) for value in (self.mean, self.std))
        return (scaled - mean) / std

    def freeze(self) -> None:
        """Nothing of it learns any more, running statistics included."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        """As in torch, except that a frozen backbone, or its norms, stay as they are."""
        super().train(mode and not self.frozen)
        if self.still_norms:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def parameter_groups(
        self, *, learning_rate: float, decay: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Groups whose learning rate falls by `decay` a block; none where it is frozen."""
        if self.frozen:
            return []
        return layered_parameters(
            self.visual,
            learning_rate=learning_rate,
            decay=decay,
            weight_decay=weight_decay,
            stages=True,
        )

    @torch.no_grad()
    def _shapes(self) -> list[tuple[int, int]]:
        """(features, cells down) of each level of a square picture."""
        was_training = self.training
        try:
            blank = torch.zeros(1, 3, self.image_size, self.image_size)
            return [(each.shape[1], each.shape[2]) for each in self.eval()(blank)]
        finally:
            self.train(was_training)


def spread(count: int) -> tuple[int, ...]:
    """Four of `count` blocks, from 0: 3, 5, 7 and 11 of twelve; all of fewer than four."""
    if count < STAGES:
        return tuple(range(count))
    return tuple(max(0, round(count * share) - 1) for share in (1 / 3, 1 / 2, 2 / 3, 1))


def set_drop_path(visual: nn.Module, rate: float) -> None:
    """Drop whole branches of blocks at random while training, from 0 at the first to `rate`.

    Stochastic depth (Huang et al., arXiv 1603.09382). Raises CapwrightError for an encoder that has
    no place for it.
    """
    if not rate:
        return
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, module in visual.named_modules():
        named = [name for name, _ in module.named_children()]
        found = [name for name in named if name in ("drop_path", "drop_path1", "drop_path2")]
        if not found and {"ls_1", "ls_2"} <= set(named):  # open_clip's block
            found = ["ls_1", "ls_2"]
        if found:
            places[prefix] = [(module, name) for name in found]
    if not places:
        raise CapwrightError(
            f"the encoder {type(visual).__name__} has no place for drop path: set drop_path=0"
        )
    for number, branches in enumerate(places.values()):
        drop = DropPath(rate * number / max(1, len(places) - 1))
        for module, name in branches:
            before = getattr(module, name)
            kept = nn.Sequential(before, drop) if name.startswith("ls_") else drop
            setattr(module, name, kept)


def load_backbone(
    checkpoint: str | Path | None,
    *,
    model: str | Mapping[str, Any] = "nano",
    seed: int = 0,
    depths: Depths = "last",
) -> Backbone:
    """Load an encoder, or, for None, build `model` with fresh weights, a function of `seed`.

    `model` may be `timm:NAME` too. Raises CapwrightError where there is no such encoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(model, str) and model.startswith(TIMM) and checkpoint is None:
            return _bare(model, fresh=True, depths=depths)
        if checkpoint is not None and str(checkpoint).startswith(TIMM):
            return _bare(str(checkpoint), fresh=False, depths=depths)
        built = towers.build(model) if checkpoint is None else towers.load(checkpoint)[0]
    size = built.visual.image_size
    trunk = getattr(built.visual, "trunk", None)
    configured = getattr(trunk, "pretrained_cfg", {})
    origin = Origin(
        name=str(configured.get("architecture", type(trunk or built.visual).__name__)),
        pretrained=RANDOM if checkpoint is None else str(checkpoint),
    )
    return Backbone(
        built.visual,
        origin,
        mean=towers.image_mean(built),
        std=towers.image_std(built),
        image_size=size if isinstance(size, int) else int(size[0]),
        depths=depths,
    ).eval()


def _bare(spec: str, *, fresh: bool, depths: Depths) -> Backbone:
    """A timm model on its own, without its classifier."""
    name, _, file = spec.removeprefix(TIMM).partition("@")
    if not timm.is_model(name):
        raise CapwrightError(
            f"timm has no model {name!r}: `timm.list_models()` lists its models, such as "
            "timm:vit_base_patch16_224.mae"
        )
    if file and (not file.endswith(".safetensors") or not Path(file).is_file()):
        raise CapwrightError(f"no weights at {file!r}: a .safetensors file is expected")
    overlay = {"file": file} if file else {}
    try:
        visual = timm.create_model(
            name, pretrained=not fresh, num_classes=0, pretrained_cfg_overlay=overlay
        )
    except (OSError, RuntimeError, KeyError) as error:
        raise CapwrightError(
            f"the weights of {spec!r} cannot be had ({' '.join(str(error).split())[:200]}): "
            "check the name and the connection, or name a file: timm:NAME@FILE.safetensors"
        ) from error
    configured = visual.pretrained_cfg
    return Backbone(
        visual,
        Origin(name=name, pretrained=RANDOM if fresh else spec),
        mean=tuple(configured["mean"]),
        std=tuple(configured["std"]),
        image_size=int(configured["input_size"][-1]),
        depths=depths,
    ).eval()
