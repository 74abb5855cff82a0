"""Classes as words, and words as vectors.

A class may have several names, which compete with each other's classes on their own: a pixel's
score for a class is that of its best name. Each name is put into every template; the unit vectors
of the sentences are averaged and made a unit vector again (CLIP, arXiv 2103.00020, section 3.1.4).

Shapes: Q names, C classes, E embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from capwright.core.errors import CapwrightError

TEMPLATES: tuple[str, ...] = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
# what is behind things: the class "background" is no word that CLIP has seen in captions
BACKGROUND = (
    "sky", "cloud", "wall", "floor", "ceiling", "ground", "grass", "field", "tree", "bush", "leaf",
    "water", "sea", "river", "sand", "snow", "rock", "mountain", "road", "pavement", "bridge",
    "building", "house", "window", "fence", "curtain", "background",
)  # fmt: skip
Encode = Callable[[Sequence[str]], Tensor]  # sentences -> unit vectors [., E]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The names of every class, by the class's number."""

    classes: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise CapwrightError(
                f"{len(self.classes)} class: a pixel needs at least two to choose from, such as "
                "'dog, grass'"
            )
        for number, names in enumerate(self.classes):
            if not names or not all(name.strip() for name in names):
                raise CapwrightError(f"class {number} has an empty name: write a word for each")

    @property
    def names(self) -> list[str]:
        """All names, class by class."""
        return [name for names in self.classes for name in names]

    @property
    def background(self) -> int:
        """How many names the background has: those of a first class with the name "background"."""
        return len(self.classes[0]) if "background" in self.classes[0] else 0

    @property
    def class_of_Q(self) -> list[int]:
        """The class of each name."""
        return [number for number, names in enumerate(self.classes) for _ in names]


def parse_classes(text: str) -> Vocabulary:
    """`dog|puppy, green grass, sky`: classes between commas, names between bars."""
    parts = [part for part in text.split(",") if part.strip()]
    return Vocabulary(
        classes=tuple(tuple(name.strip() for name in part.split("|")) for part in parts)
    )


def text_vectors(
    encode: Encode, vocabulary: Vocabulary, templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """Unit vectors of all names, [Q, E]."""
    names = vocabulary.names
    sentences = [template.format(name) for name in names for template in templates]
    vectors_QTE = encode(sentences).unflatten(0, (len(names), len(templates)))
    return F.normalize(vectors_QTE.mean(dim=1), dim=-1)


def best_name(scores_BQHW: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Every class's best name, [B, C, H, W]."""
    parts = scores_BQHW.split([len(names) for names in vocabulary.classes], dim=1)
    return torch.stack([part.amax(dim=1) for part in parts], dim=1)
