"""KITTI depth, fine-tuned: GLPDepth's decoder, Eigen's split, Garg's crop, 80 m.

    capwright transfer depth kitti_glp --checkpoint MODEL --data data/kitti --out runs/kitti_glp

Pictures and depths are cut to KITTI's frame of 352 x 1216 at the bottom centre. At the test 16
square windows move along the picture, each also mirrored.

Hardware: one A100; untested by us on GPUs. Time, derived and not measured: about 2.6 hours with
ViT-B/16. 576,000 views of 352 x 704 pixels at 772 GFLOP (three forward passes, by our count), at 48
TFLOP/s, the pace of MobileCLIP's authors (secondary source).

Published: nothing for the encoders compared here. With everything frozen, SPACE-CLIP (ViT-B/16) has
RMSE 3.845, AbsRel 0.0901, delta1 0.909 (primary source), a decoder of its own.

From SwinTransformer/MIM-Depth-Estimation (primary source): largest learning rate 5e-4, least 3e-5,
up and down with power 0.9, weight decay 0.05, SiLog 0.5, flip test; 25 passes (here of 23,000
pictures in batches of 16). 16 shifted windows, the cut and CutDepth are config defaults (from
memory). Everything else is ours.
"""

from pathlib import Path

from capwright.evaluate.transfer.config import TransferConfig
from capwright.evaluate.transfer.depth import DepthSettings
from capwright.evaluate.transfer.loop import Schedule
from capwright.evaluate.transfer.pixel_values import ReadOut
from capwright.evaluate.transfer.pixel_views import ViewSettings


def config() -> TransferConfig:
    """The recipe's plan."""
    return TransferConfig(
        task="depth",
        dataset="kitti",
        data=Path("data/kitti"),
        train_split="train",
        test_splits=("test",),
        out=Path("runs/kitti_glp"),
        schedule=Schedule(
            steps=36_000,
            batch=16,
            learning_rate=5e-4,
            encoder_learning_rate=5e-4,
            layer_decay=0.75,
            weight_decay=0.05,
            shape="one_cycle",
            power=0.9,
            least=0.06,
        ),
        drop_path=0.1,
        depth=DepthSettings(
            head="glp",
            views=ViewSettings(frame=(352, 1216), cut=(352, 704), strip=0.25),
            read_out=ReadOut(flip=True, shifts=16),
        ),
        workers=6,
    )
