"""What the nearest-patch probe keeps of labelled pictures (dense/neighbours.py).

Every training picture gives the same number of its labelled patches, drawn by the seed, at the size
at which pictures are tested. Shapes: H and W as seen, M patches kept, D features, C classes, h and
w of the grid.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.core.reading import in_order
from capwright.datasets.sets import IGNORE, SegmentationItem, SegmentationSet
from capwright.dense.backbone import Backbone
from capwright.dense.neighbours import NeighbourHead, cell_shares
from capwright.dense.pixel_model import PixelModel, pad_to
from capwright.evaluate.transfer.segmentation import SegmentationSettings, resized
from capwright.pretrain.precision import arithmetic


@torch.no_grad()
def build(
    backbone: Backbone,
    settings: SegmentationSettings,
    pictures: SegmentationSet,
    numbers: Sequence[int],
    seed: int,
) -> PixelModel:
    """The encoder with what is kept; CapwrightError where no pixel has a label."""
    backbone.freeze()
    draws = np.random.default_rng([seed, 0])
    most = max(1, settings.kept_patches // len(numbers))
    vectors: list[Tensor] = []
    shares: list[Tensor] = []
    with Progress("keep patches", len(numbers), "pictures") as progress:
        for item in in_order(pictures.__getitem__, numbers, ahead=16):
            vectors_MD, shares_MC = patches(backbone, item, settings, len(pictures.classes))
            labelled = np.flatnonzero(shares_MC.sum(dim=1).numpy())
            chosen = torch.from_numpy(np.sort(draws.permutation(labelled)[:most]))
            vectors.append(vectors_MD[chosen])
            shares.append(shares_MC[chosen])
            progress.advance()
    if not any(map(len, vectors)):
        raise CapwrightError(
            f"none of the {len(numbers)} training pictures of {pictures.name} has a labelled "
            "pixel: check the folder with `capwright data check`"
        )
    head = NeighbourHead(
        torch.cat(vectors),
        torch.cat(shares),
        neighbours=settings.neighbours,
        temperature=settings.temperature,
    )
    return PixelModel(backbone, None, head.to(next(backbone.parameters()).device)).eval()


def patches(
    backbone: Backbone, item: SegmentationItem, settings: SegmentationSettings, classes: int
) -> tuple[Tensor, Tensor]:
    """All patches of a picture: vectors [M, D] and shares of the classes [M, C], on the CPU."""
    images_13HW = resized(backbone, [item], settings.read_out)
    size = (images_13HW.shape[-2], images_13HW.shape[-1])
    padded = pad_to(images_13HW, backbone.multiple)
    seg_11HW = F.interpolate(torch.tensor(item.seg_HW)[None, None], size=size, mode="nearest-exact")
    down, right = padded.shape[-2] - size[0], padded.shape[-1] - size[1]
    seg_11HW = F.pad(seg_11HW, (0, right, 0, down), value=IGNORE)
    with arithmetic(settings.read_out.precision, padded.device):
        last_1Dhw = backbone(padded)[-1].float().cpu()
    grid = (last_1Dhw.shape[-2], last_1Dhw.shape[-1])
    shares_1Chw = cell_shares(seg_11HW[:, 0], classes, grid)
    return last_1Dhw[0].flatten(1).T, shares_1Chw[0].flatten(1).T
