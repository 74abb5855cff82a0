"""ADE20K, fine-tuned with Semantic FPN: the setting for MCi and other hierarchical encoders.

    capwright transfer segmentation ade20k_semantic_fpn --checkpoint MobileCLIP-S2/datacompdr \\
        --data data/ade20k --out runs/ade20k_semantic_fpn

Views of 512 pixels, batches of 16, AdamW with a polynomial of power 0.9. The paper's own schedule
was not at hand: 40k steps, rate 2e-4 and weight decay 1e-4 are a config default, what Semantic FPN
is usually compared with (sweep the rate). Whole pictures at the test.

Published, mIoU at 512 (third-party translation of MobileCLIP2's tables), supervised on ImageNet and
MobileCLIP2: MCi0 44.8 and 47.0, MCi2 48.9 and 51.6. Not reproduced here: neither ADE20K nor a GPU
was at hand. Hardware: one GPU of 24 GB. Time with MCi2, derived and not measured: about 1.2 hours,
three forward passes of 106 GFLOP a view at 48 TFLOP/s.
"""

from pathlib import Path

from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.segmentation import ReadOut, SegmentationSettings


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="segmentation",
        dataset="ade20k",
        data=Path("data/ade20k"),
        train_split="training",
        test_splits=("validation",),
        out=Path("runs/ade20k_semantic_fpn"),
        schedule=Schedule(
            steps=40_000,
            batch=16,
            learning_rate=2e-4,
            encoder_learning_rate=2e-4,
            weight_decay=1e-4,
            warmup_steps=1_500,
            shape="poly",
            power=0.9,
        ),
        segmentation=SegmentationSettings(
            head="semantic_fpn", width=128, read_out=ReadOut(window=0)
        ),
        precision="bf16",
        workers=8,
        save_every=2_000,
    )
