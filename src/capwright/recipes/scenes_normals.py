"""Surface normals of the scenes from a frozen encoder: a linear probe, in a minute on a CPU.

    capwright transfer normals scenes_normals --checkpoint MODEL --data runs/demo/scenes \\
        --out runs/scenes_normals --seeds 3

`runs/demo/scenes` is what `capwright demo` leaves: the probe learns from `probe`, `seen` is tested.
Normals of the scenes have two values, ground and not ground: this shows that the probe works, and
little about surfaces. A light head: `--set normals.head=light`.

Published: nothing, the scenes are this project's. Everything here is ours. Pictures come at 64
pixels, the side of the small towers; scenes are scored as stored.
"""

from pathlib import Path

from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.normals import NormalsSettings
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="normals",
        dataset="scenes",
        data=Path("runs/demo/scenes"),
        train_split="probe",
        test_splits=("seen",),
        out=Path("runs/scenes_normals"),
        schedule=Schedule(
            steps=240,
            batch=25,
            learning_rate=3e-3,
            weight_decay=0.05,
            warmup_steps=24,
            shape="cosine",
        ),
        train_samples=500,
        test_samples=300,
        normals=NormalsSettings(
            head="linear",
            views=ViewSettings(short_side=64),
            read_out=ReadOut(flip=True, batch=50),
        ),
        save_every=60,
    )
