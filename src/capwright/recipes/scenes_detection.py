"""Things of the scenes, fine-tuned: a small Mask R-CNN, in minutes on two cores.

    capwright transfer detection scenes_detection --checkpoint MODEL \\
        --data runs/demo/scenes --out runs/scenes_detection --fractions 0.05,0.2,1 --seeds 3

`runs/demo/scenes` is what `capwright demo` leaves: heads learn from `probe`, `seen` is tested; with
scenes of your own, name the folders: `--set train_split=labelled --set 'test_splits=["seen"]'`.
`--checkpoint scratch` is the control, fresh weights with a schedule of their own.

Published: nothing, the scenes are this project's. Everything here is ours. Pictures come as stored,
128 pixels; things are 15 to 100 pixels wide, half of them 41 to 71, so anchors and the side at
which an object is read are smaller than COCO's.
"""

from dataclasses import replace
from pathlib import Path

from capwright.dense.mask_rcnn import MaskRCNNSettings
from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.detection import DetectionSettings
from capwright.evaluate.transfer.detection_views import DetectionViews
from capwright.evaluate.transfer.loop import Schedule

SCHEDULE = Schedule(
    steps=300,
    batch=12,
    learning_rate=1e-3,
    encoder_learning_rate=3e-4,
    layer_decay=0.75,
    weight_decay=0.05,
    warmup_steps=30,
    shape="cosine",
    grad_clip=10.0,
)


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="detection",
        dataset="scenes",
        data=Path("runs/demo/scenes"),
        train_split="probe",
        test_splits=("seen",),
        out=Path("runs/scenes_detection"),
        schedule=SCHEDULE,
        scratch_schedule=replace(SCHEDULE, encoder_learning_rate=1e-3, layer_decay=1.0),
        train_samples=500,
        test_samples=300,
        detection=DetectionSettings(
            heads=MaskRCNNSettings(
                width=48,
                anchors=(4, 5.6),
                canonical=112,
                head_width=192,
                mask_width=32,
                candidates=300,
                proposals=100,
                sampled=48,
            ),
            views=DetectionViews(
                short_sides=(128,), long_side=128, jitter=(0.75, 1.33), canvas=128
            ),
            batch=25,
        ),
        save_every=50,
    )
