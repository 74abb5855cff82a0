"""NYUv2 depth, fine-tuned: GLPDepth's decoder on any encoder.

    capwright transfer depth nyuv2_glp --checkpoint MODEL --data data/nyuv2 --out runs/nyuv2_glp

`data/nyuv2` holds the labelled .mat with splits.mat or the folders of docs/reference/datasets.md.
Ten times data efficiency is the paper's claim: `--fractions 0.01,0.02,0.05,0.1,0.2,0.5,1 --seeds
3`. Other heads: `--set depth.head=deconv`, what masked-image-modelling work has.

Hardware: one A100; untested by us on GPUs. Time of one run with all pictures, derived and not
measured: about 1.1 hours with ViT-B/16. 240,000 views of 448 x 576 pixels at 808 GFLOP (three
forward passes, by our count; the decoder and its pyramid are a fifth), at 48 TFLOP/s, the pace of
MobileCLIP's authors on a GPU of this kind (secondary source). Smaller fractions take as long: the
steps stay.

Published: ViT-B/16, RMSE in m (third-party translation of MobileCLIP2's tables): MAE 0.383, CLIP
(WIT-400M) 0.416, MobileCLIP2 0.356. Their setup is not published in code; they may train on the
24,000 pictures of the raw videos, this recipe has the 795 labelled ones: do not compare without a
run of your own.

From SwinTransformer/MIM-Depth-Estimation (primary source, for stride-32 Swin): largest learning
rate 5e-4, least 3e-5, up and down with power 0.9, weight decay 0.05, batch 24, SiLog 0.5, flip
test. GLPDepth's: the decoder, cut and CutDepth (from memory, a config default). Everything else is
ours: steps, layer decay, drop path, colours.
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
        dataset="nyuv2",
        data=Path("data/nyuv2"),
        train_split="train",
        test_splits=("test",),
        out=Path("runs/nyuv2_glp"),
        schedule=Schedule(
            steps=10_000,
            batch=24,
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
            views=ViewSettings(cut=(448, 576), strip=0.25),
            read_out=ReadOut(flip=True),
        ),
        workers=6,
    )
