"""What an expert must be: something that labels every pixel of a batch of square pictures.

Shapes: B pictures, S side of the pictures, L side of the labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an expert before its weights are read; it goes into the stage's plan."""

    name: str
    revision: str
    classes: tuple[str, ...] = ()  # of its segmentation, by number
    depth_kind: str = ""  # of its depth: metres ("metric") or inverse and unscaled ("relative")


class Expert(Protocol):
    """Pixels in, labels out."""

    picture_size: int
    """Side of the pictures that it wants."""

    def label(
        self, pixels_BSS3: NDArray[np.uint8], size: int, tasks: Sequence[str]
    ) -> Mapping[str, NDArray[Any]]:
        """`segmentation` uint8 [B, L, L], 255 unknown; `depth` float32 [B, L, L], NaN unknown.

        A picture's labels do not depend on the others of its batch. `size` is L.
        """
        ...
