"""ImageNet, fine-tuned: a linear layer and the whole encoder.

    capwright transfer classification imagenet_finetune --checkpoint MODEL --data data/imagenet \\
        --out runs/imagenet_finetune

Hardware: one A100 of 80 GB; untested by us on GPUs. Time, derived and not measured: about 73 hours
with ViT-B/16. 128 million views of 224 x 224 pixels at 98 GFLOP (three forward passes, by our
count), at 48 TFLOP/s, the pace of MobileCLIP's authors (secondary source). For a tenth of that take
`--set schedule.steps=25000`.

Published: FD-CLIP-B 84.9% with 100 passes, base learning rate 1.25e-3, layer decay 0.6, drop path
0.3, weight decay 0.05 (primary source, SwinTransformer/Feature-Distillation). That has stronger
augmentation (RandAugment, CutMix, erasing) than this recipe: expect less.

From it: passes, layer decay, drop path, weight decay. Everything else is ours: batch and with it
the learning rate, warm-up, mixup 0.8, label smoothing 0.1.
"""

from pathlib import Path

from capwright.evaluate.transfer.classification import ClassificationSettings
from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.finetune_classifier import FineTuning
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.vectors import VectorPlan


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="classification",
        dataset="imagenet",
        data=Path("data/imagenet"),
        train_split="train",
        test_splits=("val",),
        out=Path("runs/imagenet_finetune"),
        schedule=Schedule(
            steps=250_000,
            batch=512,
            learning_rate=6e-4,
            encoder_learning_rate=6e-4,
            layer_decay=0.6,
            weight_decay=0.05,
            warmup_steps=12_500,
            shape="cosine",
        ),
        drop_path=0.3,
        classification=ClassificationSettings(
            method="finetune",
            vectors=VectorPlan(crop_share=0.875, precision="auto"),
            fine_tuning=FineTuning(mixup=0.8, label_smoothing=0.1),
            batch=256,
        ),
        workers=12,
    )
