"""Linear probes of the last map: what an encoder knows, read without a decoder.

Segmentation and normals: BatchNorm and a 1x1 convolution, bilinear to the size asked for. Depth as
DINOv2 probes it (Oquab et al., arXiv 2304.07193, with AdaBins' uniform bins, arXiv 2011.14141): the
map is enlarged four times, a 1x1 convolution gives a value for each of 256 bins of equal width
between the least and the largest distance; the values, without negative ones and with 0.1 added,
are shares, and the answer is the mean of the bins' centres. The class token is not joined to the
map, as DINOv2 does, since not every encoder has one.

Shapes: B pictures, D features, C outputs, K bins, h and w of the map, H and W asked for.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_SHARE = 0.1
ENLARGED = 4


class LinearHead(nn.Module):
    """The last map to C outputs at every pixel."""

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels[-1])
        self.predict = nn.Conv2d(channels[-1], outputs, 1)
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.zeros_(self.predict.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Outputs [B, C, H, W] at `size` = (H, W)."""
        out = self.predict(self.norm(maps[-1]))
        return F.interpolate(out, size=size, mode="bilinear", align_corners=False)


class LinearDepth(nn.Module):
    """The last map to metres, by bins of equal width."""

    centres_K: Tensor

    def __init__(
        self, channels: Sequence[int], *, least_m: float, most_m: float, bins: int = 256
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels[-1])
        self.predict = nn.Conv2d(channels[-1], bins, 1)
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.zeros_(self.predict.bias)  # type: ignore[arg-type]
        # on a device that is named: transformers may hide `linspace` from a device of the context
        device = self.predict.weight.device
        centres_K = torch.linspace(least_m, most_m, bins, device=device)
        self.register_buffer("centres_K", centres_K, persistent=False)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Metres [B, 1, H, W] at `size` = (H, W)."""
        x = F.interpolate(maps[-1], scale_factor=ENLARGED, mode="bilinear", align_corners=False)
        shares_BKhw = self.predict(self.norm(x)).float().relu() + LEAST_SHARE
        shares_BKhw = shares_BKhw / shares_BKhw.sum(dim=1, keepdim=True)
        # no matrix product: autocast would round the metres to bf16
        metres_B1hw = (shares_BKhw * self.centres_K[:, None, None]).sum(dim=1, keepdim=True)
        return F.interpolate(metres_B1hw, size=size, mode="bilinear", align_corners=False)
