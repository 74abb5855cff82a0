"""open_clip's transformers read at one position of every sequence; the result is the same.

A tower that pools at one token (the class token of a picture, the end of a text) reads nothing else
of its last block, so that block's queries, output and feed-forward network are computed there
alone: of twelve blocks of 50 tokens this saves about 7% of the tower's products.

Shapes: B sequences, l positions, D features of a token, H and W pixels, E embedding.
"""

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def readable(tower: Any) -> bool:
    """Whether `read` may pass the tower's blocks one by one.

    Sharded, wrapped or compiled blocks must be called as a whole, through their tower's forward.
    """
    compiled = getattr(tower, "_compiled_call_impl", None) is not None
    plain = all(type(block) is ResidualAttentionBlock for block in tower.transformer.resblocks)
    return plain and tower.transformer.batch_first and not compiled


def pools_class_token(visual: Any) -> bool:
    """Whether `embed_by_class_token` gives what `visual` gives."""
    own = type(visual) is VisionTransformer and not visual.output_tokens
    return own and visual.attn_pool is None and visual.pool_type == "tok" and readable(visual)


def embed_by_class_token(visual: Any, images_B3HW: Tensor) -> Tensor:
    """What `visual(images_B3HW)` gives, [B, E]."""
    x_BlD = visual._embeds(images_B3HW)
    first_B = torch.zeros(len(x_BlD), dtype=torch.long, device=x_BlD.device)
    pooled_BD: Tensor = visual.ln_post(read(visual.transformer, x_BlD, first_B))
    return pooled_BD if visual.proj is None else pooled_BD @ visual.proj


def read(
    transformer: Any,
    x_BlD: Tensor,
    at_B: Tensor,
    *,
    mask_ll: Tensor | None = None,
    unseen_Bl: Tensor | None = None,
) -> Tensor:
    """What the blocks give at position `at_B`, [B, D].

    `mask_ll` is added to the attention of all blocks but the last; `unseen_Bl` says which positions
    the one that is read does not see.
    """
    *blocks, last = transformer.resblocks
    for block in blocks:
        if transformer.grad_checkpointing:
            x_BlD = checkpoint(block, x_BlD, None, None, mask_ll, use_reentrant=False)
        else:
            x_BlD = block(x_BlD, attn_mask=mask_ll)
    return _last_block(last, x_BlD, at_B, unseen_Bl)


def _last_block(block: Any, x_BlD: Tensor, at_B: Tensor, unseen_Bl: Tensor | None) -> Tensor:
    rows = torch.arange(len(at_B), device=x_BlD.device)
    normed_BlD = block.ln_1(x_BlD)
    attended_B1D, _ = block.attn(
        normed_BlD[rows, at_B][:, None],
        normed_BlD,
        normed_BlD,
        need_weights=False,
        key_padding_mask=unseen_Bl,
    )
    x_BD: Tensor = x_BlD[rows, at_B] + block.ls_1(attended_B1D[:, 0])
    return x_BD + block.ls_2(block.mlp(block.ln_2(x_BD)))  # type: ignore[no-any-return]
