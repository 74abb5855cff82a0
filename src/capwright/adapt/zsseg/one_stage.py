"""The baseline: one network that classifies every pixel by texts, without proposals.

CLIP's image encoder as a fully convolutional network, fine-tuned on the seen classes: its last map
goes through an FCN head to the joint space, the logit of a cell for a class is 100 times its cosine
with the class's text, and logits are enlarged to the picture. Classes are exchanged by their texts,
as with the proposals, so whatever differs between both is the second stage.

Shapes: B pictures, E joint space, C classes, H and W pixels, h and w cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.adapt.zsseg.proposals import SCALE
from capwright.dense.backbone import Backbone
from capwright.dense.fcn import FcnHead
from capwright.dense.pixel_model import pad_to


class PixelClassifier(nn.Module):
    """Pixels 0 to 1 of any size and texts to logits."""

    def __init__(self, backbone: Backbone, embedding: int, *, width: int = 256) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = FcnHead(backbone.channels, embedding, level=len(backbone.channels), width=width)

    def forward(self, pixels_B3HW: Tensor, texts_CE: Tensor) -> Tensor:
        """Logits [B, C, H, W]."""
        height, width = pixels_B3HW.shape[-2:]
        images = pad_to(self.backbone.normalised(pixels_B3HW), self.backbone.multiple)
        maps = self.backbone(images)
        cells = (maps[-1].shape[-2], maps[-1].shape[-1])
        found_BEhw = self.head(maps, cells)
        with torch.autocast(images.device.type, enabled=False):  # logits of 100 need 24 bits
            unit_BEhw = F.normalize(found_BEhw.float(), dim=1)
            unit_CE = F.normalize(texts_CE.float(), dim=-1)
            logits_BChw = SCALE * F.conv2d(unit_BEhw, unit_CE[:, :, None, None])
        whole = F.interpolate(
            logits_BChw, size=images.shape[-2:], mode="bilinear", align_corners=False
        )
        return whole[..., :height, :width]
