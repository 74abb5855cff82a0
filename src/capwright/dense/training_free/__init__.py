"""Segmentation with any words by a frozen CLIP: no training, a file for each method.

The name is the module: `sclip` is sclip.py, whose `features(layers, texts_QE)` gives every patch a
vector in the joint space; `settle`, where there is one, changes the logits of whole pictures.
`segmenter.py` makes labels of them.
"""

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.dense.training_free.layers import Layers

METHODS = (
    "clip", "maskclip", "sclip", "clearclip", "naclip", "gem", "resclip", "scclip", "contrast",
)  # fmt: skip


class Method(Protocol):
    """A module of this folder."""

    features: Callable[[Layers, Tensor], Tensor]
    """(layers, texts_QE) -> patches in the joint space, [B, P, E]."""
    # and where a method decides on whole pictures: settle(logits_BQHW, whole_BQ, background)


def find_method(name: str) -> Method:
    """The module of a method; raises CapwrightError for a name that there is not."""
    if name not in METHODS:
        raise CapwrightError(f"method {name!r} is unknown: allowed are {', '.join(METHODS)}")
    module: Any = importlib.import_module(f"{__name__}.{name}")
    method: Method = module
    return method
