"""Patch dropout with the choice made outside the model: "FLIP" (Li et al., arXiv 2212.00794).

timm and open_clip draw the dropped patches from torch's global random state. Here the caller says
which patches of every picture are kept, so the choice can be a function of (seed, sample, epoch)
and stay the same on one process or many, and a masked autoencoder can use the same mechanism.

Shapes: B pictures, T tokens (prefix tokens first), P prefix tokens, K kept patches, D features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from capwright.core.errors import CapwrightError


class KeptTokens(nn.Module):
    """Sits where a transformer drops patches; passes everything until `keep_BK` is set."""

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens
        self.keep_BK: Tensor | None = None

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Keep the prefix and the chosen patches."""
        if self.keep_BK is None:
            return tokens_BTD
        prefix_BPD, patches = tokens_BTD.split(
            [self.prefix_tokens, tokens_BTD.shape[1] - self.prefix_tokens], dim=1
        )
        chosen = self.keep_BK.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        kept_BKD = patches.gather(1, chosen)
        return torch.cat([prefix_BPD, kept_BKD], dim=1) if self.prefix_tokens else kept_BKD


@contextmanager
def kept_tokens(model: nn.Module, keep_BK: Tensor | None) -> Iterator[None]:
    """Inside the block the image tower sees only the patches `keep_BK` (None: all of them).

    Raises CapwrightError for a tower that has no tokens to drop, such as a convolutional network.
    """
    if keep_BK is None:
        yield
        return
    slot = _slot(model)
    slot.keep_BK = keep_BK
    try:
        yield
    finally:
        slot.keep_BK = None


def _slot(model: nn.Module) -> KeptTokens:
    visual: Any = getattr(model, "visual", model)
    owner, name = visual, "patch_dropout"
    if hasattr(visual, "trunk"):
        owner, name = visual.trunk, "patch_drop"
    if getattr(owner, name, None) is None:
        raise CapwrightError(
            f"the image tower {type(owner).__name__} has no patches to drop: set patch_dropout=0 "
            "and leave out masked objectives, or choose a vision transformer"
        )
    slot = getattr(owner, name)
    if not isinstance(slot, KeptTokens):
        slot = KeptTokens(int(getattr(owner, "num_prefix_tokens", 1)))
        setattr(owner, name, slot)
    return slot
