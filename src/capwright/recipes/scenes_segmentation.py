"""Segmentation of the scenes, fine-tuned: a small UperNet, in minutes on two cores.

    capwright transfer segmentation scenes_segmentation --checkpoint MODEL \\
        --data runs/demo/scenes --out runs/scenes_segmentation --fractions 0.05,0.2,1 --seeds 3

`runs/demo/scenes` is what `capwright demo` leaves: heads learn from `probe`, `seen` is tested; with
scenes of your own, name the folders: `--set train_split=labelled --set 'test_splits=["seen"]'`.
`--checkpoint scratch` is the control, fresh weights with a schedule of their own. A linear probe of
a frozen encoder: `--set segmentation.head=linear --set schedule.encoder_learning_rate=0`; nearest
patches: `--set segmentation.head=knn`.

Published: nothing, the scenes are this project's. Everything here is ours; the rates and the
weights of rare classes are those of dense-probe/v1. Pictures come at 64 pixels, the side of the
small towers; labels are scored as stored.
"""

from dataclasses import replace
from pathlib import Path

from capwright.evaluate.transfer.augment import ViewSettings
from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.segmentation import ReadOut, SegmentationSettings

SCHEDULE = Schedule(
    steps=240,
    batch=25,
    learning_rate=3e-3,
    encoder_learning_rate=3e-4,
    layer_decay=0.75,
    weight_decay=0.05,
    warmup_steps=24,
    shape="cosine",
)


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="segmentation",
        dataset="scenes",
        data=Path("runs/demo/scenes"),
        train_split="probe",
        test_splits=("seen",),
        out=Path("runs/scenes_segmentation"),
        schedule=SCHEDULE,
        scratch_schedule=replace(SCHEDULE, encoder_learning_rate=1e-3, layer_decay=1.0),
        train_samples=500,
        test_samples=300,
        segmentation=SegmentationSettings(
            head="upernet",
            width=48,
            pyramid_width=32,
            class_balance=0.5,
            views=ViewSettings(
                side=64, short_side=64, scale=(1.0, 1.25), most_of_one=1.0, colours=False
            ),
            read_out=ReadOut(short_side=64, window=0, batch=50),
        ),
        save_every=60,
    )
