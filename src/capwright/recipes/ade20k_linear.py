"""ADE20K, linear probe: BatchNorm and a 1x1 convolution on the last map of a frozen encoder.

    capwright transfer segmentation ade20k_linear --checkpoint MODEL --data data/ade20k \\
        --out runs/ade20k_linear

40k steps of 16 views of 512 pixels, rate 1e-3, windows at the test: the public recipe of DINOv3
(primary source). Weight decay and warm-up are config defaults.

Published with that recipe, frozen: DINOv3 ViT-B 51.8 mIoU (its model card). Not comparable with
fine-tuned numbers. Not reproduced here: ADE20K was not at hand.
"""

from pathlib import Path

from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.segmentation import SegmentationSettings


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="segmentation",
        dataset="ade20k",
        data=Path("data/ade20k"),
        train_split="training",
        test_splits=("validation",),
        out=Path("runs/ade20k_linear"),
        schedule=Schedule(
            steps=40_000,
            batch=16,
            learning_rate=1e-3,
            weight_decay=1e-3,
            warmup_steps=1_500,
            shape="poly",
        ),
        segmentation=SegmentationSettings(head="linear"),
        precision="bf16",
        workers=8,
        save_every=4_000,
    )
