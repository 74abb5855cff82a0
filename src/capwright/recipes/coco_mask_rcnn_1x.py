"""COCO, fine-tuned with Mask R-CNN for 12 passes: the "1x" setting that CLIP papers compare by.

    capwright transfer detection coco_mask_rcnn_1x --checkpoint MODEL --data data/coco \\
        --out runs/coco_mask_rcnn_1x --workers 8

A plain vision transformer gets ViTDet's pyramid on its last map, an encoder with stages a feature
pyramid network; torchvision's heads. Pictures with the shorter side at 800 pixels, the longer at
most 1333, mirrored with probability 1/2; 12 passes of 118,287 pictures in batches of 16, the rate
divided by 10 after passes 8 and 11; a single scale at the test.

From MobileCLIP2's account of it (third-party translation): Mask R-CNN, 1x, a single scale at the
test. Everything else is a config default: rates, layer decay, drop path, warm-up. The recipe alone
moves box AP by about four points (`coco_vitdet`), so compare encoders under one recipe.

Published, ViT-B/16, box and mask AP (third-party translation of MobileCLIP2's tables): MAE 46.5 and
40.9, MAWS 48.0 and 43.4, MobileCLIP2 47.0. Not reproduced here: neither COCO nor the time was at
hand. Hardware: one GPU of 80 GB; not measured. All blocks attend to the whole picture, so its side
counts to the fourth power there; ViTDet's windows are not built.
"""

from pathlib import Path

from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.loop import Schedule

PICTURES, BATCH = 118_287, 16


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="detection",
        dataset="coco-instances",
        data=Path("data/coco"),
        train_split="train2017",
        test_splits=("val2017",),
        out=Path("runs/coco_mask_rcnn_1x"),
        schedule=Schedule(
            steps=12 * PICTURES // BATCH,
            batch=BATCH,
            learning_rate=1e-4,
            encoder_learning_rate=1e-4,
            layer_decay=0.75,
            weight_decay=0.05,
            warmup_steps=500,
            shape="step",
            milestones=(8 / 12, 11 / 12),
        ),
        drop_path=0.1,
        precision="bf16",
        workers=12,
        save_every=2_000,
    )
