"""Segmentation with any words by a frozen CLIP: no training, a file for each method.

The name is the module: `sclip` is sclip.py, whose `features(layers, texts_QE)` gives every patch a
vector in the joint space; `settle`, where there is one, changes the logits of whole pictures. Where
`features` takes `residual` and `ffn`, these parts of the last block can be switched on and off.
`segmenter.py` makes labels of them.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor

from capwright.core.errors import CapwrightError

METHODS = (
    "clip", "maskclip", "sclip", "clearclip", "naclip", "gem", "resclip", "scclip", "contrast",
)  # fmt: skip


class Method(Protocol):
    """A module of this folder."""

    features: Callable[..., Tensor]
    """(layers, texts_QE) -> patches in the joint space, [B, P, E]."""
    # and where a method decides on whole pictures: settle(logits_BQHW, whole_BQ, background)


def find_method(name: str) -> Method:
    """The module of a method; raises CapwrightError for a name that there is not."""
    if name not in METHODS:
        raise CapwrightError(f"method {name!r} is unknown: allowed are {', '.join(METHODS)}")
    module: Any = importlib.import_module(f"{__name__}.{name}")
    method: Method = module
    return method


def require_switches(names: Iterable[str], switches: Iterable[str]) -> None:
    """Raise CapwrightError where one of the methods lacks one of the switches residual and ffn."""
    for switch in switches:
        having = [name for name in METHODS if switch in _parameters(name)]
        lacking = [name for name in names if name not in having]
        if lacking:
            raise CapwrightError(
                f"method {lacking[0]!r} has no switch for {switch}: leave it as the method has it, "
                f"or take of {', '.join(having)} alone"
            )


def _parameters(name: str) -> Iterable[str]:
    return inspect.signature(find_method(name).features).parameters
