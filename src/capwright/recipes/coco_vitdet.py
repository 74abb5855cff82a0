"""COCO, fine-tuned at length: ViTDet's heads, large-scale jitter, 100 passes.

    capwright transfer detection coco_vitdet --checkpoint MODEL --data data/coco \\
        --out runs/coco_vitdet --workers 16

Beside `coco_mask_rcnn_1x`: pictures are scaled by 0.1 to 2 of a square of 1024 pixels and cut to
it, the box head has four convolutions before its full connection, both heads a LayerNorm after
every convolution, the proposals two convolutions.

After ViTDet (arXiv 2203.16527), whose pyramid this is. The numbers are config defaults that were
not checked against the paper: batch 64, rate 1e-4 divided by 10 at 0.889 and 0.963 of the steps,
250 steps of warm-up, weight decay 0.1, layer decay 0.7 and drop path 0.1 (both for ViT-B). ViTDet
also has windows in most blocks and relative positions; here all blocks attend to the whole picture.

Published: nothing for the encoders of this line under this recipe. Not reproduced here: neither
COCO nor the time was at hand. Hardware: one step of 64 pictures of 1024 pixels needs several GPUs
of 80 GB, and this loop has one: take a smaller batch and rate, `--set schedule.batch=16 --set
schedule.steps=739293 --set schedule.learning_rate=5e-5 --set schedule.encoder_learning_rate=5e-5`.
"""

from pathlib import Path

from capwright.dense.mask_rcnn import MaskRCNNSettings
from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.detection import DetectionSettings
from capwright.evaluate.transfer.detection_views import DetectionViews
from capwright.evaluate.transfer.loop import Schedule

PICTURES, BATCH = 118_287, 64


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="detection",
        dataset="coco-instances",
        data=Path("data/coco"),
        train_split="train2017",
        test_splits=("val2017",),
        out=Path("runs/coco_vitdet"),
        schedule=Schedule(
            steps=100 * PICTURES // BATCH,
            batch=BATCH,
            learning_rate=1e-4,
            encoder_learning_rate=1e-4,
            layer_decay=0.7,
            weight_decay=0.1,
            warmup_steps=250,
            shape="step",
            milestones=(0.889, 0.963),
        ),
        drop_path=0.1,
        detection=DetectionSettings(
            heads=MaskRCNNSettings(rpn_convolutions=2, box_head="4conv1fc", norm="layer"),
            views=DetectionViews(
                short_sides=(1024,), long_side=1024, jitter=(0.1, 2.0), canvas=1024
            ),
        ),
        precision="bf16",
        workers=16,
        save_every=2_000,
    )
