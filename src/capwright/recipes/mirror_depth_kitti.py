"""CLIP Can Understand Depth on KITTI: ViT-B/16, frozen, a mirror of 64 vectors.

    capwright adapt mirror-depth --recipe kitti --data data/kitti --out runs/mirror_kitti

Data: docs/reference/datasets.md; Eigen's split, 652 pictures to test on (of 697, those with ground
truth), the Garg crop, up to 80 m. Pictures are cut to 352 × 1216 at the bottom, as GLPDepth has it.

Hardware: one GPU; untested by us on GPUs, no time measured.

Published: AbsRel lower by 75.6% than Auty et al. (primary source, abstract of v2), whose 0.303
(from memory) would make it about 0.074. SPACE-CLIP, a frozen CLIP without any text: AbsRel 0.0901,
RMSE 3.845, delta1 0.909 (primary source).

From the paper (secondary source): 64 vectors that begin as N(0, 0.02), FiLM, both towers frozen.
Config defaults of ours: SiLog of weight 0.85, AdamW 1e-4 with decay 0.01, 25 passes of 23,158
pictures, four depths of features, the decoder. The arm `depthclip` is left out: its seven distances
are chosen for rooms.
"""

from pathlib import Path

from capwright.adapt.mirror_depth.config import CONSTANT, DECODER, MIRROR, PROMPTS, Config
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings

PASSES, PICTURES, BATCH = 25, 23_158, 16


def config() -> Config:
    """The recipe's plan."""
    return Config(
        checkpoint="ViT-B-16/openai",
        data=Path("data/kitti"),
        out=Path("runs/mirror_depth_kitti"),
        dataset="kitti",
        arms=(MIRROR, CONSTANT, PROMPTS, DECODER),
        tokens=64,
        width=128,
        views=ViewSettings(frame=(352, 1216), cut=(352, 704), colours=0.5),
        read_out=ReadOut(flip=True, batch=4, precision="bf16"),
        schedule=Schedule(
            steps=PASSES * PICTURES // BATCH, batch=BATCH, learning_rate=1e-4, weight_decay=0.01,
            warmup_steps=500, shape="cosine", grad_clip=1.0,
        ),
        precision="bf16",
        loader_workers=8,
    )  # fmt: skip
