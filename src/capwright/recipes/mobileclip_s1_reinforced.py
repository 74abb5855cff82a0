"""MobileCLIP-S1, image tower MCi1, on reinforced DataComp-12M.

    torchrun --nproc-per-node 8 -m capwright pretrain mobileclip_s1_reinforced

How to make the data, whose settings these are, and the run on a billion pictures: `mobileclip.py`.

Hardware: 8 A100 of 80 GB; untested by us on GPUs. Time, derived and not measured: about 11 hours,
245.8 million samples of 64 GFLOP (three forward passes of one picture at 256 pixels and two
captions) at 48 TFLOP/s a GPU, the pace of the ViT-B/16 of the authors (1.3 hours for 12.8 million
samples, secondary source). Convolutions reach less of a GPU than ViT-B/16, so take it as a least.

Published (primary source, the README of apple/ml-mobileclip): ImageNet 72.6%, COCO 44.0 / 62.2%
(text to image / image to text R@1) after 13 billion samples of DataCompDR-1B. For 12 million
pictures we know no number of S1; the ViT-B/16 of the authors has 61.6% there (secondary source).
"""

from capwright.pretrain.config import PretrainConfig
from capwright.recipes.mobileclip import plan


def config() -> PretrainConfig:
    """The recipe's plan."""
    return plan("mobileclip_s1_reinforced", "MobileCLIP-S1")
