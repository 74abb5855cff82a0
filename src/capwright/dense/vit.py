"""A vision transformer opened up: the parts of its blocks, for methods that join them otherwise.

`open_up` takes open_clip's own vision transformer, or a timm one inside open_clip, with a class
token or an average as its pooling. Nothing is copied or changed: every call uses the tower's own
layers, so `embedding` of all blocks is what the tower itself gives.

Shapes: B pictures, N tokens (`prefix` first, then the patches row by row), D width, A heads,
d = D / A, E joint space, h and w of the grid of patches.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.models import vision_transformer as timm_vit
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.models.image_sizes import at_size

Heads = tuple[Tensor, Tensor, Tensor]  # queries, keys, values, each [B, A, N, d]


class Vit(ABC):
    """The parts of an image tower."""

    prefix: int  # tokens before the patches: class token, registers
    heads: int
    blocks: Any
    own_size: tuple[int, int]  # of the pictures that the tower was made for, in pixels

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @abstractmethod
    def embed(self, images_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the first block, [B, N, D], and the grid (h, w), for any divisible size."""

    @abstractmethod
    def norm1(self, block: int, x_BND: Tensor) -> Tensor:
        """The norm before a block's attention."""

    @abstractmethod
    def heads_of(self, block: int, normed_BND: Tensor) -> Heads:
        """Queries, keys and values of normalised tokens."""

    @abstractmethod
    def merge(self, block: int, out_BANd: Tensor) -> Tensor:
        """What a block's attention adds to its input: heads joined and projected, [B, N, D]."""

    @abstractmethod
    def mlp(self, block: int, x_BND: Tensor) -> Tensor:
        """What a block's feed-forward part adds to its input; the norm is inside."""

    @abstractmethod
    def project(self, x_BND: Tensor) -> Tensor:
        """Every token through the final norm into the joint space, [B, N, E]."""

    @abstractmethod
    def embedding(self, x_BND: Tensor) -> Tensor:
        """The picture's embedding, [B, E], pooled as the tower pools."""

    def qkv(self, block: int, x_BND: Tensor) -> Heads:
        """Queries, keys and values of a block's input."""
        return self.heads_of(block, self.norm1(block, x_BND))

    def block(self, block: int, x_BND: Tensor) -> Tensor:
        """The whole block as it is."""
        x_BND = x_BND + self.merge(block, F.scaled_dot_product_attention(*self.qkv(block, x_BND)))
        return x_BND + self.mlp(block, x_BND)


def open_up(model: Any) -> Vit:
    """The parts of an open_clip model's image tower; raises CapwrightError for other kinds."""
    visual = getattr(model, "visual", model)
    trunk = getattr(visual, "trunk", None)
    if isinstance(visual, VisionTransformer):
        pooled = visual.attn_pool is None and visual.pool_type in ("tok", "avg")
        if pooled and all(type(b) is ResidualAttentionBlock for b in visual.transformer.resblocks):
            return _OpenClip(visual)
    elif isinstance(trunk, timm_vit.VisionTransformer):
        pooled = trunk.attn_pool is None and trunk.global_pool in ("token", "avg")
        if pooled and all(_is_plain(block) for block in trunk.blocks):
            return _Timm(visual)
    raise CapwrightError(
        f"the image tower {type(trunk or visual).__name__} cannot be opened up: training-free "
        "segmentation needs a plain vision transformer (open_clip's or timm's) that pools by its "
        "class token or by the average, such as ViT-B-16"
    )


def _is_plain(block: Any) -> bool:
    return (
        type(block) is timm_vit.Block
        and type(block.attn) is timm_vit.Attention
        and getattr(block.attn, "gate", None) is None
    )


class _OpenClip(Vit):
    def __init__(self, visual: Any) -> None:
        self.visual, self.blocks, self.prefix = visual, visual.transformer.resblocks, 1
        self.heads, self.own_size = self.blocks[0].attn.num_heads, _pair(visual.image_size)

    def embed(self, images_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        visual = self.visual
        with at_size(visual, *images_B3HW.shape[-2:]):
            patches_BDhw = visual.conv1(images_B3HW)
            first = visual.class_embedding.expand(len(images_B3HW), 1, -1)
            x_BND = F.pad(patches_BDhw.flatten(2).transpose(1, 2), (0, 0, 1, 0))
            x_BND[:, :1] = first
            x_BND = visual.ln_pre(x_BND + visual.positional_embedding)
        return x_BND, (patches_BDhw.shape[-2], patches_BDhw.shape[-1])

    def norm1(self, block: int, x_BND: Tensor) -> Tensor:
        normed: Tensor = self.blocks[block].ln_1(x_BND)
        return normed

    def heads_of(self, block: int, normed_BND: Tensor) -> Heads:
        attn = self.blocks[block].attn
        return _split(F.linear(normed_BND, attn.in_proj_weight, attn.in_proj_bias), self.heads)

    def merge(self, block: int, out_BANd: Tensor) -> Tensor:
        module = self.blocks[block]
        out: Tensor = module.ls_1(module.attn.out_proj(out_BANd.transpose(1, 2).flatten(2)))
        return out

    def mlp(self, block: int, x_BND: Tensor) -> Tensor:
        module = self.blocks[block]
        out: Tensor = module.ls_2(module.mlp(module.ln_2(x_BND)))
        return out

    def project(self, x_BND: Tensor) -> Tensor:
        normed: Tensor = self.visual.ln_post(x_BND)
        return normed if self.visual.proj is None else normed @ self.visual.proj

    def embedding(self, x_BND: Tensor) -> Tensor:
        visual = self.visual
        if not visual.final_ln_after_pool:
            x_BND = visual.ln_post(x_BND)
        pooled_BD = x_BND[:, 0] if visual.pool_type == "tok" else x_BND[:, 1:].mean(dim=1)
        if visual.final_ln_after_pool:
            pooled_BD = visual.ln_post(pooled_BD)
        return pooled_BD if visual.proj is None else pooled_BD @ visual.proj


class _Timm(Vit):
    def __init__(self, visual: Any) -> None:
        self.visual, self.trunk, self.blocks = visual, visual.trunk, visual.trunk.blocks
        self.prefix = self.trunk.num_prefix_tokens
        self.heads, self.own_size = self.blocks[0].attn.num_heads, _pair(visual.image_size)

    def embed(self, images_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        trunk = self.trunk
        with at_size(self.visual, *images_B3HW.shape[-2:]):
            patches = trunk.patch_embed(images_B3HW)
            x_BND = trunk.norm_pre(trunk._pos_embed(patches))
        height, width = patches.shape[1:3] if patches.ndim == 4 else trunk.patch_embed.grid_size
        return x_BND, (height, width)

    def norm1(self, block: int, x_BND: Tensor) -> Tensor:
        normed: Tensor = self.blocks[block].norm1(x_BND)
        return normed

    def heads_of(self, block: int, normed_BND: Tensor) -> Heads:
        attn = self.blocks[block].attn
        queries, keys, values = _split(attn.qkv(normed_BND), self.heads)
        return attn.q_norm(queries), attn.k_norm(keys), values

    def merge(self, block: int, out_BANd: Tensor) -> Tensor:
        module = self.blocks[block]
        attn = module.attn
        out: Tensor = module.ls1(attn.proj(attn.norm(out_BANd.transpose(1, 2).flatten(2))))
        return out

    def mlp(self, block: int, x_BND: Tensor) -> Tensor:
        module = self.blocks[block]
        out: Tensor = module.ls2(module.mlp(module.norm2(x_BND)))
        return out

    def project(self, x_BND: Tensor) -> Tensor:
        trunk = self.trunk
        out: Tensor = self.visual.head(trunk.head(trunk.fc_norm(trunk.norm(x_BND))))
        return out

    def embedding(self, x_BND: Tensor) -> Tensor:
        out: Tensor = self.visual.head(self.trunk.forward_head(self.trunk.norm(x_BND)))
        return out


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _split(joined_BN3D: Tensor, heads: int) -> Heads:
    queries, keys, values = (
        part.unflatten(2, (heads, -1)).transpose(1, 2) for part in joined_BN3D.chunk(3, dim=2)
    )
    return queries, keys, values
