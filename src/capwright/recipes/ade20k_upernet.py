"""ADE20K, fine-tuned with UperNet: the setting of *CLIP with Quality Captions* for ViT-B/16.

    capwright transfer segmentation ade20k_upernet --checkpoint MODEL --data data/ade20k \\
        --out runs/ade20k_upernet --fractions 0.01,0.02,0.05,0.1,0.2,0.5,1 --seeds 3

ViTDet's pyramid on the last map, UperNet, an auxiliary FCN of weight 0.4; views of 512 pixels, 160k
steps of 16 pictures, AdamW, 1,500 steps of warm-up, then linearly to zero; windows of 512 pixels
that move by 341 at the test.

From GBC, which follows the paper (primary source): pyramid, head, views, steps, batch, warm-up,
weight decay 0.01, and a sweep of the peak rate over 5e-4, 2e-4, 1e-4, 7e-5 and 5e-5; sweep
`schedule.learning_rate` and `schedule.encoder_learning_rate` together. From dBOT's configuration
(primary source): layer decay 0.65, drop path 0.1, stride 341, the auxiliary's weight. There the
head has 768 channels (ours 512, a config default), the weight decay is 0.05, and four depths of the
encoder are taken, which is `--set segmentation.depths=spread`.

Published, ViT-B/16, mIoU (third-party translation of MobileCLIP2's tables): MAE 48.1, CLIP
(WIT-400M) 49.5, MobileCLIP2 52.8. Not reproduced here: neither ADE20K nor a GPU was at hand.
Hardware: one GPU of 80 GB. Time, derived and not measured: about 30 hours, three forward passes of
675 GFLOP a view at 48 TFLOP/s, the pace of MobileCLIP's authors.
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
        out=Path("runs/ade20k_upernet"),
        schedule=Schedule(
            steps=160_000,
            batch=16,
            learning_rate=1e-4,
            encoder_learning_rate=1e-4,
            layer_decay=0.65,
            weight_decay=0.01,
            warmup_steps=1_500,
            shape="poly",
            power=1.0,
        ),
        drop_path=0.1,
        segmentation=SegmentationSettings(head="upernet"),
        precision="bf16",
        workers=8,
        save_every=4_000,
    )
