"""The embedded captioner on other pictures: what one corpus trained (`small.py`) describes another.

Reads: the weights that `capwright describe CORPUS --work WORK --with small` left in
WORK/models/small-captioner/weights. Run: `capwright describe OTHER --work W --with trained --model
WORK/models/small-captioner/weights`. The caption is the likeliest one (greedy or by beams), so that
it depends on the picture alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from capwright.captions.describe.local_models import folder_revision
from capwright.captions.describe.protocol import Caption
from capwright.captions.describe.small import MODEL, WritingConfig, write_captions
from capwright.captions.describe.small_model import load_captioner
from capwright.captions.features import record_type
from capwright.core.errors import CapwrightError
from capwright.corpus.pictures import square
from capwright.models import trunk as lite0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which trained captioner."""

    model: str = ""
    """Folder of weights, WORK/models/small-captioner/weights."""
    picture_size: int = 128
    """Side in pixels that it was trained at."""
    beams: int = 1
    """Beams of the caption; 1 is greedy."""
    batch_size: int = 64
    """Pictures at once."""


class SmallDescriber:
    """The trunk, the concept head and the decoder."""

    name, overlap = MODEL, 1

    def __init__(self, config: Config) -> None:
        self.batch_size, self.size = config.batch_size, config.picture_size
        folder = Path(config.model)
        if not config.model or not (folder / "captioner.json").is_file():
            raise CapwrightError(
                f"there is no trained captioner at {config.model!r}: give --model "
                "WORK/models/small-captioner/weights of a corpus described --with small"
            )
        self.revision = folder_revision(folder)
        self.writing = WritingConfig(beams=config.beams, sampled=0)
        self.prompt = f"beam {config.beams}" if config.beams > 1 else "greedy"
        self.trunk = lite0.load_trunk()
        self.head, self.captioner = load_captioner(folder)

    @torch.no_grad()
    def describe(self, images: Sequence[Image.Image]) -> list[list[Caption]]:
        """See `Describer`."""
        texts = write_captions(self.head, self.captioner, self._records(images), self.writing)
        return [[Caption(text=text, prompt=self.prompt)] for (text,) in texts]

    def _records(self, images: Sequence[Image.Image]) -> Any:
        pixels_BHW3 = np.stack([np.asarray(square(image, self.size)) for image in images])
        middle, deep = lite0.feature_maps(self.trunk, lite0.normalise(pixels_BHW3))
        records = np.zeros(len(images), record_type(self.size))
        records["middle"], records["deep"], records["valid"] = middle.numpy(), deep.numpy(), True
        return records


def build(config: Config, style: str) -> SmallDescriber:
    """The captioner; raises CapwrightError for another style than short."""
    if style != "short":
        raise CapwrightError(
            f"the embedded captioner writes short captions, not {style!r}: leave out --style, "
            "or choose --with coca, transformers or openai"
        )
    return SmallDescriber(config)
