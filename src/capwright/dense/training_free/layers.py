"""What the blocks of a vision transformer give for one batch of pictures, computed once.

Several methods share one pass: each asks for the layers that it needs.

Shapes: B pictures, N tokens, P patches (N without the prefix), D width, A heads.
"""

import torch
from torch import Tensor

from capwright.dense.vit import Vit

REFERENCE_DEPTH = 12  # the papers count the blocks of ViT-B


class Layers:
    """The tokens between the blocks, on demand."""

    def __init__(self, vit: Vit, images_B3HW: Tensor) -> None:
        tokens_BND, self.grid = vit.embed(images_B3HW)
        self.vit = vit
        self._before = [tokens_BND]

    def before(self, block: int) -> Tensor:
        """The input of a block, counted from 0, [B, N, D]; `depth` is what the last one gives."""
        while len(self._before) <= block:
            self._before.append(self.vit.block(len(self._before) - 1, self._before[-1]))
        return self._before[block]

    def after(self, block: int) -> Tensor:
        """The output of a block, counted from 0, [B, N, D]."""
        return self.before(block + 1)

    @property
    def last(self) -> int:
        """Number of the last block."""
        return self.vit.depth - 1

    def scaled(self, block: int) -> int:
        """The block of this tower that lies as deep as `block` of a tower of 12 blocks.

        Our reading for other depths: the papers name blocks of ViT-B alone.
        """
        return round(block * (self.vit.depth - 1) / (REFERENCE_DEPTH - 1))

    def patches(self, tokens_BND: Tensor) -> Tensor:
        """The tokens without the prefix, [B, P, D]."""
        return tokens_BND[:, self.vit.prefix :]

    def whole(self, tokens_BND: Tensor) -> Tensor:
        """The token of the whole picture, [B, 1, D]: the class token, or the patches' mean."""
        return tokens_BND[:, :1] if self.vit.prefix else tokens_BND.mean(dim=1, keepdim=True)

    def distances(self) -> Tensor:
        """Squared distances between patches in patches, [P, P]."""
        height, width = self.grid
        device = self._before[0].device
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        places_P2 = torch.cartesian_prod(rows, columns).float()
        return (places_P2[:, None] - places_P2[None]).square().sum(dim=-1)
