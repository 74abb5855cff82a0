"""ADE20K, the nearest labelled patches of a frozen encoder: nothing is learned.

    capwright transfer segmentation ade20k_knn --checkpoint MODEL --data data/ade20k \\
        --out runs/ade20k_knn --fractions 0.01,0.1,1

30 neighbours and the temperature 0.02 are those of the in-context evaluation of arXiv 2306.01667
as remembered, so config defaults; it keeps 10 million patches of the whole training set, here a
million are kept (`--set segmentation.kept_patches=N`: 4 bytes a number, 3 GB for a million of 768).
Not reproduced here: ADE20K was not at hand.
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
        out=Path("runs/ade20k_knn"),
        schedule=Schedule(steps=1, batch=1, learning_rate=1.0),  # nothing is learned
        segmentation=SegmentationSettings(head="knn", kept_patches=1_000_000),
    )
