"""NYUv2 depth from a frozen encoder: 256 bins read off its last map, as DINOv2 probes.

    capwright transfer depth nyuv2_linear --checkpoint MODEL --data data/nyuv2 \\
        --out runs/nyuv2_linear

Hardware: one A100; untested by us on GPUs. Time, derived and not measured: about 0.7 hours with
ViT-B/16. 614,400 views of 416 x 544 pixels at 186 GFLOP (one forward pass: nothing below the head
learns, by our count), at 48 TFLOP/s, the pace of MobileCLIP's authors (secondary source).

Published: DINOv3 ViT-B 0.373 m RMSE (primary source, model card; how it is read off was not at
hand). SigLIP 2 So/14 0.493, OpenAI's ViT-L/14 0.553 (primary source), by a probe of their own.
Protocols differ: never compare across.

From DINOv3's public recipe (primary source): 38,400 steps, cut 416 x 544, learning rate 3e-4; batch
16. SiLog 0.5, weight decay, warm-up and colours are ours.
"""

from pathlib import Path

from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.depth import DepthSettings
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="depth",
        dataset="nyuv2",
        data=Path("data/nyuv2"),
        train_split="train",
        test_splits=("test",),
        out=Path("runs/nyuv2_linear"),
        schedule=Schedule(
            steps=38_400,
            batch=16,
            learning_rate=3e-4,
            weight_decay=1e-3,
            warmup_steps=1_000,
            shape="cosine",
        ),
        depth=DepthSettings(
            head="linear", views=ViewSettings(cut=(416, 544)), read_out=ReadOut(flip=True)
        ),
        workers=6,
    )
