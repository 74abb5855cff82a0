"""CLIP from scratch on the composed scenes: selected captions mixed with some alt text.

    capwright scenes --out runs/scenes --count 8000
    capwright index runs/scenes --work runs/work
    capwright describe runs/scenes --work runs/work   (then fuse, score, select)
    capwright pretrain scenes_clip

Hardware: two CPU cores, about 2 minutes. A recipe of your own is a Python file with a `config()`
like this one: `capwright pretrain my_recipe.py --set learning_rate=5e-4`.
"""

from pathlib import Path

from capwright.pretrain.config import CaptionSource, PretrainConfig

WORK = Path("runs/work")


def config() -> PretrainConfig:
    """The recipe's plan."""
    return PretrainConfig(
        out=Path("runs/scenes_clip"),
        work=WORK,
        captions=(
            CaptionSource(name="selected", folder=WORK / "captions" / "select", probability=0.75),
            CaptionSource(name="alt", probability=0.25),
        ),
        samples=76_800,
        warmup_samples=7_680,
    )
