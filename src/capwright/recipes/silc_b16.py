"""SILC on DataComp-12M: CLIP ViT-B/16 that also distils large views into small ones.

    capwright index data/datacomp12m/shards --work data/datacomp12m/work --workers 16
    torchrun --nproc-per-node 8 -m capwright pretrain silc_b16

The data is that of `clip_b16_datacomp12m`. Controls: the same with another `out` and
`--set 'objectives={"contrastive": 1}'` at equal pictures, and at equal compute with 3.7 times
`samples`. SigLIP 2's schedule, the last fifth of the run alone and one global view:
`--set 'objectives={"contrastive": 1, "self_distillation": [[0.8, 0], [0.8, 1]]}'
--set self_distillation.global_views=1`.

Hardware: 8 A100 of 80 GB, 512 pictures a GPU; untested by us on GPUs. Time, derived and not
measured: about 80 hours. At every picture the student sees two global views and eight local ones of
96 pixels, the teacher the global ones: 452 GFLOP (three forward passes where a gradient is
needed, by our count), at 48 TFLOP/s a GPU, the pace of MobileCLIP's authors (1.3 hours for 12.8
million samples of 141 GFLOP on 8 A100, secondary source), for 245.8 million samples.

Published: nothing for this data. The paper trains on WebLI, which is not public, and its tables
were not at hand. The nearest is COSMOS, public code of a relative, which on CC3M with new captions
has ImageNet 37.1% and COCO 53.1% image to text (primary source). So measure against the control.

From COSMOS (primary source): momentum 0.99 at a batch of 4,096, learning rate 5e-4, local views of
96 pixels up to 0.4 of the picture. Two global and eight local views are SILC's (secondary source).
Everything else is ours: prototypes, temperatures, decay, warm-up, pictures stored at 320 pixels,
the number of samples.
"""

from pathlib import Path

from capwright.pretrain.config import (
    Augmentation,
    CaptionSource,
    PretrainConfig,
    SelfDistillationSettings,
)

BATCH = 4_096


def config() -> PretrainConfig:
    """The recipe's plan."""
    return PretrainConfig(
        out=Path("runs/silc_b16"),
        work=Path("data/datacomp12m/work"),
        captions=(CaptionSource(name="alt"),),
        model="ViT-B-16",
        tokenizer="open_clip",
        image_size=224,
        stored_size=320,  # a local view of 5% of it is 72 pixels wide
        augmentation=Augmentation(crop_area=(0.4, 1.0)),
        objectives={"contrastive": 1.0, "self_distillation": 1.0},
        self_distillation=SelfDistillationSettings(
            momentum=0.99,
            global_views=2,
            local_views=8,
            local_area=(0.05, 0.4),
            local_size=96,
            prototypes=65_536,
        ),
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
