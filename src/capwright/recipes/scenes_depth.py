"""Depth of the scenes, fine-tuned: GLPDepth's decoder, small, in minutes on a CPU.

    capwright transfer depth scenes_depth --checkpoint MODEL --data runs/demo/scenes \\
        --out runs/scenes_depth --fractions 0.05,0.2,1 --seeds 3

`runs/demo/scenes` is what `capwright demo` leaves: heads learn from `probe`, `seen` is tested.
`--checkpoint scratch` is the control, fresh weights with a schedule of their own. A linear probe of
a frozen encoder: `--set depth.head=linear --set schedule.encoder_learning_rate=0`.

Published: nothing, the scenes are this project's. Everything here is ours; the rates are those of
dense-probe/v1. Pictures come at 64 pixels, the side of the small towers; scenes are scored as
stored.
"""

from dataclasses import replace
from pathlib import Path

from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.depth import DepthSettings
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings

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
        task="depth",
        dataset="scenes",
        data=Path("runs/demo/scenes"),
        train_split="probe",
        test_splits=("seen",),
        out=Path("runs/scenes_depth"),
        schedule=SCHEDULE,
        scratch_schedule=replace(SCHEDULE, encoder_learning_rate=1e-3, layer_decay=1.0),
        train_samples=500,
        test_samples=300,
        depth=DepthSettings(
            head="glp",
            width=32,
            pyramid_width=32,
            views=ViewSettings(short_side=64, strip=0.25),
            read_out=ReadOut(flip=True, batch=50),
        ),
        save_every=60,
    )
