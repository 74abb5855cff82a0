"""The baseline: one network that classifies every pixel by texts, without proposals.

CLIP's image encoder as a fully convolutional network, fine-tuned on the seen classes: its last map
goes through an FCN head to the joint space, is enlarged to the picture, and a pixel's logit for a
class is 100 times its cosine with the class's text. Classes are exchanged by their texts, as with
the proposals, so whatever differs between both is the second stage.

Shapes: B pictures, E joint space, C classes, H and W pixels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from capwright.adapt.zsseg.proposals import SCALE
from capwright.dense.backbone import Backbone
from capwright.dense.fcn import FcnHead
from capwright.dense.pixel_model import PixelModel


class PixelClassifier(nn.Module):
    """Pixels 0 to 1 of any size to vectors at every pixel."""

    def __init__(self, backbone: Backbone, embedding: int, *, width: int = 256) -> None:
        super().__init__()
        head = FcnHead(backbone.channels, embedding, level=len(backbone.channels) - 1, width=width)
        self.model = PixelModel(backbone, None, head)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Vectors [B, E, H, W], not normalised."""
        features_BEHW: Tensor = self.model(self.model.backbone.normalised(pixels_B3HW))
        return features_BEHW

    def logits(self, features_BEHW: Tensor, texts_CE: Tensor) -> Tensor:
        """Scaled cosines, [B, C, H, W]."""
        unit_BEHW = F.normalize(features_BEHW, dim=1)
        return SCALE * F.conv2d(unit_BEHW, F.normalize(texts_CE, dim=-1)[:, :, None, None])
