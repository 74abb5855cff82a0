"""MAE: "Masked Autoencoders Are Scalable Vision Learners" (He et al., arXiv 2111.06377).

Most patches are hidden, the tower sees the others, and a light decoder predicts the pixels of the
hidden ones, each patch normalised by its own mean and deviation; the loss is the squared error on
hidden patches alone. Hidden patches are set to the mean colour before the tower: a convolutional
stem looks beyond its own patch, and would otherwise see what it has to predict.

Shapes: B pictures, H pixels a side, P patches of which K visible, p pixels a side of a patch,
C = 3pp values of a patch, D features of the tower, W width of the decoder.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.models.kept_tokens import kept_tokens
from capwright.models.towers import grid, patch_features
from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import Group
from capwright.pretrain.objective import BaseObjective, Features, Terms


def hidden_patches(visible_BK: Tensor, patches: int) -> Tensor:
    """bool [B, P]: True where a patch is hidden."""
    hidden_BP = torch.ones(len(visible_BK), patches, dtype=torch.bool, device=visible_BK.device)
    return hidden_BP.scatter(1, visible_BK, False)


def blank(images_B3HH: Tensor, hidden_BP: Tensor, side: int) -> Tensor:
    """Set hidden patches to the mean colour, which is 0 in normalised pictures."""
    count = images_B3HH.shape[-1] // side
    hidden_B1hw = hidden_BP.view(-1, 1, count, count).to(images_B3HH.dtype)
    return images_B3HH * (1 - F.interpolate(hidden_B1hw, scale_factor=side, mode="nearest"))


def patch_targets(images_B3HH: Tensor, side: int) -> Tensor:
    """Pixels of every patch, normalised patch by patch: [B, P, C]."""
    pixels_BPC = F.unfold(images_B3HH, side, stride=side).transpose(1, 2)
    deviation, mean = torch.std_mean(pixels_BPC, dim=-1, keepdim=True)
    return (pixels_BPC - mean) / (deviation + 1e-3)


def reconstruction_error(predicted_BPC: Tensor, target_BPC: Tensor, hidden_BP: Tensor) -> Tensor:
    """Mean squared error over the hidden patches of each picture, [B]."""
    error_BP = (predicted_BPC - target_BPC).square().mean(dim=-1)
    return (error_BP * hidden_BP).sum(dim=1) / hidden_BP.sum(dim=1)


class Objective(BaseObjective):
    """The decoder, which is thrown away after training. It works on the first view."""

    position_1PW: Tensor

    uses = ("image",)

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__(model, config)
        settings = config.masked_autoencoder
        rows, columns, features = grid(model, config.image_size)
        self.side, self.patches = config.image_size // rows, rows * columns
        if rows != columns or self.side * rows != config.image_size:
            raise CapwrightError(
                f"image_size {config.image_size} is no multiple of the tower's patches "
                f"({rows} x {columns}): choose one that is"
            )
        if self.patches < 2:
            raise CapwrightError(
                f"image_size {config.image_size} is a single patch of the tower, of which "
                "masked_autoencoder can hide none: choose a larger image_size or smaller patches"
            )
        visible = round(self.patches * (1 - settings.masked))
        self.visible = min(max(1, visible), self.patches - 1)
        width = settings.decoder_width
        self.embed = nn.Linear(features, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        position = build_sincos2d_pos_embed([rows, columns], dim=width)
        self.register_buffer("position_1PW", position.unsqueeze(0), persistent=False)
        self.blocks = nn.Sequential(
            *(Block(width, settings.decoder_heads) for _ in range(settings.decoder_layers))
        )
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, 3 * self.side**2)

    def encode(self, model: Any, batch: Batch, shared: Features) -> dict[str, Tensor]:
        """Each picture's error, [B]."""
        images_B3HH = batch.images_BV3HH[:, 0]
        visible_BK = batch.patch_order_BN[:, : self.visible]
        hidden_BP = hidden_patches(visible_BK, self.patches)
        with kept_tokens(model, visible_BK):
            features_BKD = patch_features(model, blank(images_B3HH, hidden_BP, self.side))
        predicted_BPC = self.decode(features_BKD, visible_BK)
        target_BPC = patch_targets(images_B3HH, self.side)
        error_B = reconstruction_error(predicted_BPC.float(), target_BPC, hidden_BP)
        return {"masked_autoencoder/error": error_B}

    def loss(self, features: Features, batch: Batch, scale: Tensor, group: Group) -> Terms:
        """The mean over pictures."""
        return Terms(features["masked_autoencoder/error"].mean())

    def decode(self, features_BKD: Tensor, visible_BK: Tensor) -> Tensor:
        """Predict every patch: [B, P, C]."""
        seen_BKW = self.embed(features_BKD)
        tokens_BPW = self.mask_token.to(seen_BKW.dtype).repeat(len(seen_BKW), self.patches, 1)
        tokens_BPW = tokens_BPW.scatter(1, visible_BK.unsqueeze(-1).expand_as(seen_BKW), seen_BKW)
        decoded_BPW = self.blocks(tokens_BPW + self.position_1PW)
        predicted: Tensor = self.predict(self.norm(decoded_BPW))
        return predicted
