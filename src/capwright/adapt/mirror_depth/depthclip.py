"""DepthCLIP (Zhang et al., arXiv 2207.01077): depth from sentences, without any training.

With f the unit vector of a patch in the joint space, t_k that of the sentence "This object is far"
and so on, and b_k the distance that stands for it,

    metres = sum over k of softmax_k(scale * cos(f, t_k) / temperature) * b_k

and the map is enlarged to the picture. The original takes patches of a ResNet-50; here they come
from a vision transformer by a method of dense/training_free.

Shapes: B pictures, K sentences, E joint space, h and w of the grid of patches, H and W pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.adapt.mirror_depth.conditions import sentence_vectors
from capwright.adapt.mirror_depth.config import ZeroShotSettings
from capwright.adapt.mirror_depth.model import frozen_backbone
from capwright.core.errors import CapwrightError
from capwright.dense.pixel_model import PixelModel, pad_to
from capwright.dense.training_free.layers import Layers
from capwright.dense.training_free.segmenter import window_logits
from capwright.dense.vit import open_up
from capwright.evaluate.encoder import Encoder


class DepthClip(PixelModel):
    """Pictures of any size to metres; nothing learns.

    Raises CapwrightError for an image tower that is no plain vision transformer.
    """

    def __init__(self, encoder: Encoder, settings: ZeroShotSettings) -> None:
        super().__init__(frozen_backbone(encoder), None, nn.Identity())
        try:
            self.vit = open_up(encoder.model)
        except CapwrightError as error:
            raise CapwrightError(f"{error}; or leave the arm depthclip out of `arms`") from error
        self.settings = settings
        texts_KE = sentence_vectors(encoder, settings.sentences)
        self.register_buffer("texts_KE", texts_KE, persistent=False)
        self.register_buffer("bins_K", torch.tensor(settings.bins_m), persistent=False)

    def both(self, images_B3HW: Tensor, *, auxiliary: bool = True) -> tuple[Tensor, Tensor | None]:
        """Metres [B, 1, H, W] of normalised pictures."""
        height, width = images_B3HW.shape[-2:]
        padded = pad_to(images_B3HW, self.backbone.multiple)
        texts_KE: Any = self.texts_KE
        cosines_BKhw = window_logits(Layers(self.vit, padded), texts_KE, self.settings.method)
        metres_B1hw = metres(cosines_BKhw, self.bins_K, self.settings)  # type: ignore[arg-type]
        size = padded.shape[-2:]
        out = F.interpolate(metres_B1hw, size=size, mode="bilinear", align_corners=False)
        return out[..., :height, :width], None


def metres(cosines_BKhw: Tensor, bins_K: Tensor, settings: ZeroShotSettings) -> Tensor:
    """The mean of the distances, weighed by how well their sentences fit, [B, 1, h, w]."""
    logits_BKhw = cosines_BKhw.float() * (settings.scale / settings.temperature)
    return torch.einsum("bkhw,k->bhw", torch.softmax(logits_BKhw, dim=1), bins_K)[:, None]
