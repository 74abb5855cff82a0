"""xCLIP on DataComp-12M: contrastive and non-contrastive learning with one ViT-B/16.

    capwright index data/datacomp12m/shards --work data/datacomp12m/work --workers 16
    torchrun --nproc-per-node 8 -m capwright pretrain xclip_b16

The data is that of `clip_b16_datacomp12m`. Control: the same with another `out` and
`--set 'objectives={"contrastive": 1}'`; the heads are cheap, so equal pictures are equal compute.

Hardware: 8 A100 of 80 GB, 512 pictures a GPU; untested by us on GPUs. Time, derived and not
measured: about 22 hours, 245.8 million samples of 123 GFLOP (three forward passes, by our count) at
48 TFLOP/s a GPU, the pace of MobileCLIP's authors (1.3 hours for 12.8 million samples of 141 GFLOP
on 8 A100, secondary source).

Published: nothing for this data. After 35 million pairs at a batch of 4,096 a list has ImageNet
74.1% with a linear probe and Flickr30k 57.3% text to image for xCLIP (secondary source); the
abstract claims gains over CLIP in both zero-shot and representation, without code (primary source).

The weights 0.7 and 0.3 and the batch of 4,096 come from one note on the paper (secondary source).
Everything else is ours: the weights of sharpness and smoothness, 4,096 prototypes (as many as
pairs in a batch), heads, learning rate, decay, warm-up, the number of samples.
"""

from pathlib import Path

from capwright.pretrain.config import (
    Augmentation,
    CaptionSource,
    NonContrastiveSettings,
    PretrainConfig,
)
from capwright.pretrain.settings.non_contrastive import XCLIP_OBJECTIVES

BATCH = 4_096


def config() -> PretrainConfig:
    """The recipe's plan."""
    return PretrainConfig(
        out=Path("runs/xclip_b16"),
        work=Path("data/datacomp12m/work"),
        captions=(CaptionSource(name="alt"),),
        model="ViT-B-16",
        tokenizer="open_clip",
        image_size=224,
        stored_size=256,
        augmentation=Augmentation(crop_area=(0.9, 1.0)),
        objectives=dict(XCLIP_OBJECTIVES),
        non_contrastive=NonContrastiveSettings(prototypes=BATCH),
        batch_size=BATCH,
        samples=60_000 * BATCH,
        warmup_samples=2_000 * BATCH,
        learning_rate=5e-4,
        betas=(0.9, 0.95),
        weight_decay=0.2,
        patch_dropout=0.0,
        precision="bf16",
        grad_checkpointing=True,
        checkpoint_samples=3_000 * BATCH,
        cache_pixels=False,
        loader_workers=6,
        log_every_steps=20,
    )
