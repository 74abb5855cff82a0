"""What a captioner is: pictures in, captions out, nothing else.

A backend is a module beside this file with a frozen `Config` and `build(config) -> Describer`; the
stage that feeds it pictures and writes its captions is `stage.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption of a picture, or why there is none."""

    text: str
    prompt: str = ""
    """Name and version of the prompt, or how the words were chosen ("greedy", "top-p 0.9")."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom as fractions of the picture; None is the whole picture."""
    tokens: int = 0
    """Tokens that the model wrote."""
    seed: int = 0
    """What the words were drawn with, where they were drawn."""
    reason: str = ""
    """Why there is no caption, such as "server: timeout"; the text is empty then."""


class Describer(Protocol):
    """A captioner that is ready to work."""

    @property
    def name(self) -> str:
        """The model, as sidecars call it."""
        ...

    @property
    def revision(self) -> str:
        """What tells two versions of the model apart, or ""."""
        ...

    @property
    def batch_size(self) -> int:
        """Pictures that one call of `describe` likes to have."""
        ...

    @property
    def overlap(self) -> int:
        """Calls of `describe` that may run at once in threads; with 2, one prepares pictures."""
        ...

    def describe(self, images: Sequence[Image.Image]) -> list[list[Caption]]:
        """Captions of RGB pictures, a list for each, in order.

        One bad picture never raises: it has one caption with a reason. What a picture is given
        depends on it and the configuration alone, not on its neighbours in the call.
        """
        ...
