"""Backbone, pyramid and head as one model: pictures of any size to values at every pixel.

A picture is padded at the right and at the bottom, with the encoder's mean colour, to sides that
the encoder can take; the answer is cut back to the picture.

Shapes: B pictures, H and W pixels, C outputs.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from capwright.dense.backbone import Backbone
from capwright.dense.pyramid import Pyramid


class PixelModel(nn.Module):
    """`pyramid` None hands the backbone's own maps to the heads."""

    def __init__(
        self,
        backbone: Backbone,
        pyramid: Pyramid | None,
        head: nn.Module,
        auxiliary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.pyramid = backbone, pyramid
        self.head, self.auxiliary = head, auxiliary

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Normalised pictures to outputs [B, C, H, W]."""
        return self.both(images_B3HW, auxiliary=False)[0]

    def both(self, images_B3HW: Tensor, *, auxiliary: bool = True) -> tuple[Tensor, Tensor | None]:
        """Outputs of the head and, where there is one, of the auxiliary head."""
        height, width = images_B3HW.shape[-2:]
        padded = pad_to(images_B3HW, (self.pyramid or self.backbone).multiple)
        size = (padded.shape[-2], padded.shape[-1])
        maps = self.backbone(padded)
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        out = self.head(maps, size)[..., :height, :width]
        if self.auxiliary is None or not auxiliary:
            return out, None
        return out, self.auxiliary(maps, size)[..., :height, :width]


def pad_to(images_B3HW: Tensor, multiple: int) -> Tensor:
    """Zeros, the mean colour of a normalised picture, at the right and at the bottom."""
    height, width = images_B3HW.shape[-2:]
    return F.pad(images_B3HW, (0, -width % multiple, 0, -height % multiple))
