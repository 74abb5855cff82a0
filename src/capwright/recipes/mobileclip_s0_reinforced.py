"""MobileCLIP with the smallest tower, MCi0, on reinforced DataComp-12M.

    torchrun --nproc-per-node 8 -m capwright pretrain mobileclip_s0_reinforced

How to make the data, whose settings these are, and the run on a billion pictures: `mobileclip.py`.

open_clip has no MobileCLIP-S0, whose text tower (MCt) mixes convolutions and attention; the model
here is MobileCLIP2-S0: MCi0 with 11.4 million parameters, and the text tower of CLIP ViT-B with
63.4 million in place of 42.4.

Hardware: 8 A100 of 80 GB; untested by us on GPUs. Time, derived and not measured: about 9 hours,
245.8 million samples of 50 GFLOP (three forward passes of one picture at 256 pixels and two
captions) at 48 TFLOP/s a GPU, the pace of the ViT-B/16 of the authors (1.3 hours for 12.8 million
samples, secondary source). Convolutions reach less of a GPU than ViT-B/16, so take it as a least.

Published (primary source, the README of apple/ml-mobileclip): ImageNet 67.8% for S0 after 13
billion samples of DataCompDR-1B, 71.5% for MobileCLIP2-S0 after 13 billion of DFNDR-2B. For 12
million pictures we know no number of S0; the ViT-B/16 of the authors has 61.6% there (secondary
source), so expect less than that.
"""

from capwright.pretrain.config import PretrainConfig
from capwright.recipes.mobileclip import plan


def config() -> PretrainConfig:
    """The recipe's plan."""
    return plan("mobileclip_s0_reinforced", "MobileCLIP2-S0")
