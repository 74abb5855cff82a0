"""ImageNet from a frozen encoder: the 20 nearest training pictures vote, DINO's protocol.

    capwright transfer classification imagenet_knn --checkpoint MODEL --data data/imagenet \\
        --out runs/imagenet_knn

Hardware: one A100; untested by us on GPUs. Time, derived and not measured: about 0.25 hours with
ViT-B/16, 1.33 million pictures of 33 GFLOP (one forward pass, by our count) at 48 TFLOP/s, the pace
of MobileCLIP's authors (secondary source). To compare them takes a minute.

Published: nothing for CLIP's encoders at hand.

DINO's (from memory, config defaults): 20 neighbours, temperature 0.07, cosine. Which vector is
ours: what the last projection gets.
"""

from pathlib import Path

from capwright.evaluate.transfer.classification import ClassificationSettings
from capwright.evaluate.transfer.config import TransferConfig
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
        out=Path("runs/imagenet_knn"),
        schedule=Schedule(steps=1, batch=1, learning_rate=1.0),  # nothing is learned
        classification=ClassificationSettings(
            method="knn", vectors=VectorPlan(precision="auto"), batch=256
        ),
    )
