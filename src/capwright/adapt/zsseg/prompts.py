"""Stage 1: a learned beginning of every prompt, through the frozen text tower.

M vectors stand between the start of a text and the name of a class, in place of "a photo of a",
and are the same for all classes (CoOp, Zhou et al., arXiv 2109.01134; ZSSeg learns 16):

    t_c = text tower([start] v_1 ... v_M name(c) [end]), v from N(0, 0.02)

They learn from crops of ground-truth masks of the seen classes: cross-entropy of the scaled cosines
of a crop and the texts. CLIP is frozen, so the crops go through it once (crops.py).

Shapes: M learned vectors, D features of a token, L context length, T texts, Q names, C classes,
N crops, E joint space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.dense.words import Vocabulary, text_vectors
from capwright.evaluate.encoder import Encoder
from capwright.models import towers


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How the beginning is learned; the defaults are the paper's for COCO-Stuff."""

    vectors: int = 16
    steps: int = 16_000
    batch: int = 32
    samples_per_class: int = 32  # crops
    learning_rate: float = 0.02  # cosine to 0
    warmup_steps: int = 100
    warmup_learning_rate: float = 0.005  # constant
    momentum: float = 0.9  # a config default
    weight_decay: float = 5e-4
    save_every: int = 1000  # steps

    def __post_init__(self) -> None:
        counts = (self.vectors, self.steps, self.batch, self.samples_per_class, self.save_every)
        if min(counts) < 1:
            raise CapwrightError(
                f"{self.vectors} vectors, {self.steps} steps of {self.batch} crops, "
                f"{self.samples_per_class} crops a class, a state every {self.save_every} steps: "
                "each must be at least 1"
            )


def class_vectors(vectors_QE: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Unit vectors [C, E]: the mean of the names of each class, made a unit vector again."""
    parts = vectors_QE.split([len(names) for names in vocabulary.classes])
    return F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1)


def fixed_texts(encoder: Encoder, vocabulary: Vocabulary, templates: Sequence[str]) -> Tensor:
    """Class vectors [C, E] from written prompts."""
    device = next(encoder.model.parameters()).device

    @torch.no_grad()
    def encode(sentences: Sequence[str]) -> Tensor:
        parts = [sentences[i : i + 256] for i in range(0, len(sentences), 256)]
        vectors = (
            towers.encode_text(encoder.model, encoder.tokenizer(list(part)).to(device))
            for part in parts
        )
        return torch.cat([F.normalize(each.float(), dim=-1) for each in vectors])

    return class_vectors(text_vectors(encode, vocabulary, templates), vocabulary)
