"""What the blocks of an open_clip transformer have that a plain pre-norm transformer has not."""

from typing import Any

from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import nn


def unusual_blocks(transformer: Any) -> str:
    """Name the first thing that is not plain, as the end of "the tower …"; "" where all is plain.

    Plain are two norms, attention and a two-layer perceptron with GELU or quick-GELU, without
    layer scale: what OpenAI's CLIP has.
    """
    for block in transformer.resblocks:
        if type(block) is not ResidualAttentionBlock:
            return f"has blocks of the kind {type(block).__name__}"
        if not isinstance(block.ls_1, nn.Identity):
            return "has layer scale"
        activation = type(block.mlp.gelu).__name__
        if not isinstance(block.mlp.gelu, nn.GELU | QuickGELU):
            return f"has the activation {activation}"
    return ""
