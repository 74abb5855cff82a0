"""A checkpoint as evaluation sees it: pixels in, features out.

Reads a checkpoint folder (models/towers.py). Pixels are uint8 [B, S, S, 3]; the tower's own mean
and deviation are applied here, so no protocol can forget them.

Shapes: B pictures, S the tower's side, D features, h and w of the token grid, E embedding, T texts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from capwright.models import towers
from capwright.pretrain.checkpoint import STATE_FILE

RANDOM = "random"  # in place of a checkpoint's name: fresh weights
BATCH = 100  # pictures or texts of one forward pass without gradients


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A CLIP model with what its inputs need."""

    model: Any  # an open_clip model; every method below is all that protocols use of it
    image_size: int  # side in pixels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str  # of the tower
    pretrained: str  # checkpoint, or RANDOM
    samples_seen: int | None  # None where the checkpoint does not say
    tokenizer: Callable[[Sequence[str]], Tensor]
    layers: tuple[int, ...] = ()  # blocks from 0 whose features are concatenated; () is the last

    def normalised(self, images_BSS3: NDArray[np.uint8] | Tensor) -> Tensor:
        """Pixels to what the tower takes, float [B, 3, S, S]."""
        pixels = torch.as_tensor(images_BSS3).permute(0, 3, 1, 2).float() / 255
        mean, std = (pixels.new_tensor(value).view(1, 3, 1, 1) for value in (self.mean, self.std))
        return (pixels - mean) / std

    def dense(self, images_B3SS: Tensor) -> Tensor:
        """Features on the token grid, [B, D, h, w]; differentiable."""
        if not self.layers:
            return towers.dense_features(self.model, images_B3SS)
        maps = [towers.dense_features(self.model, images_B3SS, layer=n) for n in self.layers]
        return torch.cat(maps, dim=1)

    @torch.no_grad()
    def image_embeddings(self, images_NSS3: NDArray[np.uint8]) -> Tensor:
        """Unit vectors [N, E]."""
        self.model.eval()
        batches = (self.normalised(b) for b in batched(images_NSS3, BATCH))
        return torch.cat([F.normalize(towers.encode_image(self.model, b), dim=-1) for b in batches])

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [T, E]."""
        self.model.eval()
        batches = (self.tokenizer(list(b)) for b in batched(texts, BATCH))
        return torch.cat([F.normalize(towers.encode_text(self.model, b), dim=-1) for b in batches])


def batched(items: Any, size: int) -> Iterator[Any]:
    """Slices of `size` items of a sequence or an array."""
    return (items[start : start + size] for start in range(0, len(items), size))


def load_encoder(
    checkpoint: str | Path | None,
    *,
    model: str | Mapping[str, Any] = "nano",
    layers: tuple[int, ...] = (),
    seed: int = 0,
) -> Encoder:
    """Load a checkpoint (whatever `towers.load` takes) or, for None, build `model` untrained.

    The fresh weights are a function of `seed`. Raises CapwrightError where there is no checkpoint.
    """
    if checkpoint is not None:
        built, _, tokenizer = towers.load(checkpoint)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = towers.build(model).eval()
        tokenizer = open_clip.SimpleTokenizer(context_length=built.context_length)
    size = built.visual.image_size
    return Encoder(
        model=built,
        image_size=size if isinstance(size, int) else int(size[0]),
        mean=towers.image_mean(built),
        std=towers.image_std(built),
        name=_tower_name(built),
        pretrained=RANDOM if checkpoint is None else str(checkpoint),
        samples_seen=0 if checkpoint is None else samples_seen(Path(checkpoint)),
        tokenizer=tokenizer,
        layers=layers,
    )


def samples_seen(checkpoint: Path) -> int | None:
    """Samples seen in pretraining, from the training state; None for a checkpoint without one."""
    for folder in (checkpoint, checkpoint / "checkpoints" / "last"):
        if (folder / STATE_FILE).is_file():
            state = torch.load(folder / STATE_FILE, weights_only=True, mmap=True)
            return int(state["samples_seen"])
    return None


def _tower_name(model: Any) -> str:
    trunk = getattr(model.visual, "trunk", None)
    if trunk is None:
        return type(model.visual).__name__
    return str(trunk.pretrained_cfg.get("architecture", type(trunk).__name__))
