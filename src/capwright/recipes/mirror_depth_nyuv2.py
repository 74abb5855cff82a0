"""CLIP Can Understand Depth on NYUv2: ViT-B/16, frozen, a mirror of 64 vectors.

    capwright adapt mirror-depth --recipe nyuv2 --data data/nyuv2 --out runs/mirror_nyuv2

Data: docs/reference/datasets.md; 795 pictures of the labelled set to learn from, 654 to test on
with the Eigen crop and up to 10 m. (Papers learn from 24,231 pictures of the raw videos: put them
into official_splits/train to do the same, and say so.)

Hardware: one GPU; untested by us on GPUs, no time measured.

Published: AbsRel lower by 68.7% than Auty et al. (primary source, abstract of v2), whose 0.319
(from memory) would make it about 0.100. SPACE-CLIP, a frozen CLIP without any text, reports 0.1042
(primary source). DepthCLIP, zero-shot: RMSE 1.176 and delta1 0.390 (primary source), of a ResNet-50
where this has the patches of a ViT.

From the paper (secondary source): 64 vectors that begin as N(0, 0.02), FiLM, both towers frozen.
Config defaults of ours: SiLog of weight 0.85, AdamW 1e-4 with decay 0.01, 25 passes of 24,231
pictures, four depths of features, the decoder. SPACE-CLIP's recipe has 20 passes, batches of 32 and
besides SiLog 0.5 SSIM, auxiliary losses and an average of the weights: left out here.
"""

from pathlib import Path

from capwright.adapt.mirror_depth.config import Config
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings

PASSES, PICTURES, BATCH = 25, 24_231, 16


def config() -> Config:
    """The recipe's plan."""
    return Config(
        checkpoint="ViT-B-16/openai",
        data=Path("data/nyuv2"),
        out=Path("runs/mirror_depth_nyuv2"),
        dataset="nyuv2",
        tokens=64,
        width=128,
        views=ViewSettings(cut=(416, 544), colours=0.5),
        read_out=ReadOut(flip=True, batch=8, precision="bf16"),
        schedule=Schedule(
            steps=PASSES * PICTURES // BATCH, batch=BATCH, learning_rate=1e-4, weight_decay=0.01,
            warmup_steps=500, shape="cosine", grad_clip=1.0,
        ),
        precision="bf16",
        loader_workers=8,
    )  # fmt: skip
