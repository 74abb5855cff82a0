"""ZSSeg (arXiv 2112.14757): zero-shot segmentation in two stages; stage.py is where to begin."""

from capwright.adapt.zsseg.config import Config
from capwright.adapt.zsseg.stage import Summary, run

__all__ = ["Config", "Summary", "run"]
