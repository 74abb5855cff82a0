"""ImageNet from a frozen encoder: logistic regression on its vectors, CLIP's protocol.

    capwright transfer classification imagenet_linear --checkpoint MODEL --data data/imagenet \\
        --out runs/imagenet_linear

`data/imagenet` has train/CLASS/*.JPEG and val/CLASS/*.JPEG. Nearest neighbours on the same vectors:
`imagenet_knn` with the same --out is another plan, so give it another folder.

Hardware: one A100 and 32 GB of memory; untested by us on GPUs. Time, derived and not measured:
about 0.8 hours with ViT-B/16. 0.25 hours for 1.33 million pictures of 33 GFLOP (one forward pass,
by our count) at 48 TFLOP/s, the pace of MobileCLIP's authors (secondary source); 0.5 hours for 16
fits of 300 evaluations of 3.9 TFLOP at 10 TFLOP/s in float32, a guess.

Published: CLIP's own tables were not at hand.

CLIP's (from memory, config defaults): features before the projection, L-BFGS of at most 1000
iterations, L2 weight searched from 1e-6 to 1e6 in steps that are halved down to eight a decade.
CLIP searches on ImageNet's own held-out split, this recipe on a tenth of the training pictures.
Features of mean 0 and deviation 1 are ours.
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
        out=Path("runs/imagenet_linear"),
        schedule=Schedule(steps=1, batch=1, learning_rate=1.0),  # nothing is learned in steps
        classification=ClassificationSettings(
            method="linear", vectors=VectorPlan(precision="auto"), batch=256
        ),
    )
