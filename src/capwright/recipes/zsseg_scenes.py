"""ZSSeg on the scenes: every fourth class unseen, minutes on a processor, three seeds.

    capwright scenes --out data/labelled --count 1000 --per-class 11 --seed 1
    capwright scenes --out data/tested --count 300 --per-class 11 --seed 2
    capwright adapt zsseg --recipe scenes --checkpoint runs/scenes_clip --out runs/zsseg

The checkpoint is one that `capwright pretrain` made on scenes of the same cut-outs. Birds, fruit,
rodents and vehicles are unseen: no mask of them is learned from. Words are those of the objects
("toucan" for birds), as in `sclip/v1`.

Everything but the method is ours: pictures of 64 pixels, 20 proposals, a small ResNet with fresh
weights, 8 learned vectors, steps that fit into minutes, a gradient clipped at 1 instead of 0.01
(which was chosen for a ResNet that ImageNet trained), one template for the fixed prompts.
"""

from pathlib import Path

from capwright.adapt.zsseg.config import FIXED, LEARNED, ONE_STAGE, Config
from capwright.adapt.zsseg.inference import InferenceSettings
from capwright.adapt.zsseg.prompts import PromptSettings
from capwright.adapt.zsseg.proposals import TINY_RESNET, ProposalSettings
from capwright.adapt.zsseg.views import ViewSettings
from capwright.evaluate.transfer.loop import Schedule


def config() -> Config:
    """The recipe's plan."""
    return Config(
        checkpoint=Path("runs/scenes_clip"),
        data=Path("data/labelled"),
        test_data=Path("data/tested"),
        out=Path("runs/zsseg_scenes"),
        dataset="scenes",
        words="engineered",
        templates=("a photo of a {}",),
        arms=(ONE_STAGE, FIXED, LEARNED),
        seeds=(0, 1, 2),
        validation=0.1,
        prompts=PromptSettings(
            vectors=8, steps=300, batch=32, samples_per_class=64, warmup_steps=20, save_every=100
        ),
        proposals=ProposalSettings(
            backbone=dict(TINY_RESNET), queries=20, layers=3, width=64, heads=4, feedforward=128,
            mask_features=64, classifier_hidden=256, dropout=0.0,
        ),
        views=ViewSettings(short_sides=(64, 96), cut=64, test_short_side=64),
        schedule=Schedule(
            steps=1000, batch=8, learning_rate=1e-3, encoder_learning_rate=1e-3,
            weight_decay=1e-4, warmup_steps=50, shape="poly", power=0.9, grad_clip=1.0,
        ),
        baseline=Schedule(
            steps=1000, batch=8, learning_rate=1e-3, encoder_learning_rate=1e-4,
            weight_decay=1e-4, warmup_steps=50, shape="poly", power=0.9, grad_clip=1.0,
        ),
        self_training=Schedule(
            steps=300, batch=8, learning_rate=3e-4, encoder_learning_rate=3e-4,
            weight_decay=1e-4, shape="poly", power=0.9, grad_clip=1.0,
        ),
        inference=InferenceSettings(pictures=16, crops=32, precision="fp32"),
        precision="fp32",
        loader_workers=0,
        workers=2,
        save_every=200,
    )  # fmt: skip
