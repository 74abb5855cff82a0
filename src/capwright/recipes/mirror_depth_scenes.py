"""Depth through a frozen CLIP on the scenes: the mirror against its controls, three seeds.

    capwright scenes --out data/labelled --count 1000 --per-class 11 --seed 1
    capwright scenes --out data/tested --count 300 --per-class 11 --seed 2
    capwright adapt mirror-depth --recipe scenes --checkpoint runs/scenes_clip --out runs/mirror

The checkpoint is one that `capwright pretrain` made on scenes of the same cut-outs. OUT/results.md
has RMSE and AbsRel of every arm with 95% intervals and the number of trained parameters. A killed
run goes on when it is started again. Hardware: two CPU cores.

Everything but the method is ours: pictures of 64 pixels, a mirror of 30 vectors (the small text
tower reads 32 tokens), a decoder of 16 channels, 400 steps of 8 pictures. Distances reach from
0.03 to 24 m here, so DepthCLIP's seven sentences stand for distances from 0.06 to 14 m, evenly
spaced in their logarithm, in place of its 1 to 3 m.
"""

from pathlib import Path

from capwright.adapt.mirror_depth.config import Config, ZeroShotSettings
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings


def config() -> Config:
    """The recipe's plan."""
    return Config(
        checkpoint=Path("runs/scenes_clip"),
        data=Path("data/labelled"),
        test_data=Path("data/tested"),
        out=Path("runs/mirror_depth_scenes"),
        dataset="scenes",
        seeds=(0, 1, 2),
        tokens=30,
        width=16,
        zero_shot=ZeroShotSettings(bins_m=(0.06, 0.15, 0.37, 0.92, 2.3, 5.6, 14.0)),
        silog_weight=0.5,
        most_m=40.0,
        views=ViewSettings(short_side=64, colours=0.5),
        read_out=ReadOut(flip=True, batch=32),
        schedule=Schedule(
            steps=400, batch=8, learning_rate=3e-3, weight_decay=0.01, warmup_steps=40,
            shape="cosine",
        ),
        precision="fp32",
        save_every=200,
    )  # fmt: skip
