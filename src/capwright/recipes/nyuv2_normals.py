"""NYUv2 surface normals from a frozen encoder: a linear probe of its last map.

    capwright transfer normals nyuv2_normals --checkpoint MODEL --data data/nyuv2 \\
        --out runs/nyuv2_normals

Hardware: one A100; untested by us on GPUs. Time, derived and not measured: about 0.17 hours with
ViT-B/16. 160,000 views of 416 x 544 pixels at 186 GFLOP (one forward pass: nothing below the head
learns, by our count), at 48 TFLOP/s, the pace of MobileCLIP's authors (secondary source).
Fitting normals takes 0.3 s of a CPU core a view (measured), so six workers take longer than a GPU:
give it as many as there are cores, `--set workers=32`.

Published: numbers against normals of third parties, smoothed in ways of their own; here normals are
fitted to the set's own depths (datasets/surfaces.py), so never compare across. Everything is ours.
"""

from pathlib import Path

from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.normals import NormalsSettings
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="normals",
        dataset="nyuv2",
        data=Path("data/nyuv2"),
        train_split="train",
        test_splits=("test",),
        out=Path("runs/nyuv2_normals"),
        schedule=Schedule(
            steps=10_000,
            batch=16,
            learning_rate=3e-4,
            weight_decay=1e-3,
            warmup_steps=1_000,
            shape="cosine",
        ),
        normals=NormalsSettings(
            head="linear", views=ViewSettings(cut=(416, 544)), read_out=ReadOut(flip=True)
        ),
        workers=6,
    )
