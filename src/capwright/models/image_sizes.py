"""Pictures of another size than the one that an image tower was made for.

Position embeddings are interpolated (bicubic, antialiased, as timm does when it loads weights) for
the time of one forward pass; the gradient goes through the interpolation to the embedding itself,
and parameters, their names and their shapes stay as they are. So local crops of self-distillation
and finer maps in dense evaluation need no second model.

- open_clip's vision transformer: any size divisible by the patch.
- open_clip's ResNet: its attention pool has positions; any size divisible by 32.
- timm's vision transformers: `allow_any_size` turns on timm's own interpolation. Not for towers
  with rotary positions, which are fixed at the size they were built for.
- Other convolutional towers take any size as they are.

Shapes: N positions (the first is not on the grid), D features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from timm.layers import Format, resample_abs_pos_embed
from torch import Tensor

from capwright.core.errors import CapwrightError

RESNET_STRIDE = 32


def allow_any_size(visual: Any) -> None:
    """Let a timm vision transformer take every size divisible by its patch."""
    trunk = getattr(visual, "trunk", visual)
    embed: Any = getattr(trunk, "patch_embed", None)
    if getattr(trunk, "dynamic_img_size", None) is not False or not hasattr(embed, "output_fmt"):
        return
    if getattr(trunk, "pos_embed", None) is None or getattr(trunk, "rope", None) is not None:
        return
    trunk.dynamic_img_size = True
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC


@contextmanager
def at_size(visual: Any, height: int, width: int) -> Iterator[None]:
    """Inside the block the tower takes pictures of `height` x `width` pixels.

    Raises CapwrightError for a size that the tower cannot take.
    """
    owner, stride, own_grid = _positions(visual)
    _check(visual, stride, height, width)
    grid = height // stride[0], width // stride[1]
    if owner is None or grid == own_grid:
        yield
        return
    embedding_ND: Tensor = owner.positional_embedding
    resized = resample_abs_pos_embed(embedding_ND[None], list(grid), list(own_grid))[0]
    # an attribute of the object hides the parameter of that name, which itself is not touched
    owner.__dict__["positional_embedding"] = resized
    try:
        yield
    finally:
        del owner.__dict__["positional_embedding"]


def _positions(visual: Any) -> tuple[Any, tuple[int, int], tuple[int, int]]:
    """(module whose positions need help or None, pixels between positions, its own grid)."""
    if isinstance(visual, VisionTransformer):
        return visual, _pair(visual.patch_size), _pair(visual.grid_size)
    if isinstance(visual, ModifiedResNet):
        rows, columns = _pair(visual.image_size)
        grid = rows // RESNET_STRIDE, columns // RESNET_STRIDE
        return visual.attnpool, (RESNET_STRIDE, RESNET_STRIDE), grid
    trunk = getattr(visual, "trunk", visual)
    if getattr(trunk, "pos_embed", None) is None:
        return None, (1, 1), (1, 1)
    return None, _pair(getattr(trunk.patch_embed, "patch_size", 1)), (1, 1)


def _check(visual: Any, stride: tuple[int, int], height: int, width: int) -> None:
    embed = getattr(getattr(visual, "trunk", visual), "patch_embed", None)
    only = getattr(embed, "img_size", None) if getattr(embed, "strict_img_size", False) else None
    if only is not None and (height, width) != _pair(only):
        allowed = f"this one takes {only[0]} x {only[1]} alone"
    elif height % stride[0] or width % stride[1] or not height or not width:
        allowed = f"both must be multiples of {stride[0]}"
    else:
        return
    raise CapwrightError(
        f"the image tower does not take pictures of {height} x {width} pixels: {allowed}, "
        "so choose such a size or another tower"
    )


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)
