"""Hidden patches: which ones, and a learned token in their place.

Squares of several patches are hidden together (SimMIM, Xie et al., arXiv 2111.09886). A grid that
the squares do not divide has cut ones at its right and lower edge. The token takes the place of
what the patch embedding gives, before positions are added. A convolutional stem looks beyond its
own patch, so hidden pixels are blanked as well; for plain patches that changes nothing.

Shapes: B pictures, h and w patches down and across, D width, H and W pixels.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capwright.core.errors import CapwrightError


def square_side(mask_patch: int, patch: int) -> int:
    """Patches a side of a square of `mask_patch` pixels; CapwrightError where it is no multiple."""
    if mask_patch % patch:
        raise CapwrightError(
            f"mask_patch is {mask_patch} pixels, but the tower's patches have {patch}: choose a "
            f"multiple, such as {patch * max(1, round(mask_patch / patch))}"
        )
    return mask_patch // patch


def draw_mask(
    rng: np.random.Generator, grid: tuple[int, int], side: int, ratio: float
) -> NDArray[np.bool_]:
    """bool [h, w], True where hidden: a share `ratio` of the squares (rounded up, never all)."""
    rows, columns = (math.ceil(count / side) for count in grid)
    squares = rows * columns
    count = min(math.ceil(round(ratio * squares, 9)), squares - 1)
    hidden = np.zeros(squares, np.bool_)
    hidden[rng.permutation(squares)[:count]] = True
    whole = hidden.reshape(rows, columns).repeat(side, axis=0).repeat(side, axis=1)
    return np.ascontiguousarray(whole[: grid[0], : grid[1]])


def blanked(images_B3HW: Tensor, hidden_Bhw: Tensor) -> Tensor:
    """The pictures with hidden patches set to the mean colour, 0 in normalised pictures."""
    down = images_B3HW.shape[-2] // hidden_Bhw.shape[-2]
    across = images_B3HW.shape[-1] // hidden_Bhw.shape[-1]
    hidden_BHW = hidden_Bhw.repeat_interleave(down, 1).repeat_interleave(across, 2)
    return images_B3HW * ~hidden_BHW[:, None]


@contextmanager
def masked_tokens(visual: Any, hidden_Bhw: Tensor, token_D: Tensor) -> Iterator[None]:
    """Inside the block the tower's hidden patches are the token.

    `visual` is an image tower that `dense.vit.open_up` takes: open_clip's own, or a timm one.
    """
    trunk = getattr(visual, "trunk", None)
    embed = visual.conv1 if trunk is None else trunk.patch_embed

    def replace(module: Any, inputs: Any, patches: Tensor) -> Tensor:
        token = token_D.to(patches.dtype)
        if trunk is None:  # [B, D, h, w]
            return torch.where(hidden_Bhw[:, None], token[:, None, None], patches)
        hidden = hidden_Bhw if patches.ndim == 4 else hidden_Bhw.flatten(1)  # [B, h, w or hw, D]
        return torch.where(hidden[..., None], token, patches)

    handle = embed.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
