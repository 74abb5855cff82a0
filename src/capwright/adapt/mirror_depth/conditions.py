"""What gives FiLM its gamma and beta: the mirror, written sentences, or learned constants.

Each is a module whose call gives a pair (gamma_D, beta_D) for every depth of the features. The
linear layers of FiLM begin at gamma near 1 and beta near 0, the constants at 1 and 0.

Shapes: D features of a depth, E joint space, M vectors of the mirror.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.adapt.learned_tokens import PrefixedTexts
from capwright.core.errors import CapwrightError
from capwright.evaluate.encoder import Encoder
from capwright.models import towers

Film = list[tuple[Tensor, Tensor]]  # gamma [D], beta [D] of every depth


class FilmOf(nn.Module):
    """gamma_l(z) and beta_l(z), linear in a vector z [E]."""

    def __init__(self, embedding: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.gammas = nn.ModuleList(nn.Linear(embedding, depth) for depth in channels)
        self.betas = nn.ModuleList(nn.Linear(embedding, depth) for depth in channels)
        for linear in self.gammas:
            nn.init.ones_(linear.bias)  # type: ignore[arg-type]
        for linear in self.betas:
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def forward(self, z_E: Tensor) -> Film:
        """(gamma, beta) of every depth."""
        pairs = zip(self.gammas, self.betas, strict=True)
        return [(gamma(z_E), beta(z_E)) for gamma, beta in pairs]


class Mirror(nn.Module):
    """M learned vectors in place of words, through the frozen text tower, then FiLM.

    Raises CapwrightError where the text tower's context is too short for them.
    """

    def __init__(self, encoder: Encoder, tokens: int, channels: Sequence[int], seed: int) -> None:
        super().__init__()
        self.texts = PrefixedTexts(encoder, tokens, seed=seed)
        try:
            with torch.no_grad():
                embedding = self.z_E().shape[0]
        except CapwrightError as error:
            context = encoder.tokenizer([""]).shape[1]
            raise CapwrightError(
                f"a mirror of {tokens} vectors does not fit into the {context} tokens that the "
                f"text tower reads, of which start and end take two: set tokens={context - 2} or "
                "less"
            ) from error
        self.film = FilmOf(embedding, channels)

    def z_E(self) -> Tensor:
        """The text tower's answer to the mirror, a unit vector."""
        z: Tensor = self.texts([""])[0]
        return z

    def forward(self) -> Film:
        """(gamma, beta) of every depth."""
        film: Film = self.film(self.z_E())
        return film


class Prompts(nn.Module):
    """The mean of the unit vectors of written sentences, as a unit vector, then FiLM."""

    def __init__(self, encoder: Encoder, sentences: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__()
        z_E = F.normalize(sentence_vectors(encoder, sentences).mean(dim=0), dim=0)
        self.register_buffer("z_E", z_E, persistent=False)
        self.film = FilmOf(len(z_E), channels)

    def forward(self) -> Film:
        """(gamma, beta) of every depth."""
        film: Film = self.film(self.z_E)
        return film


class Constants(nn.Module):
    """gamma and beta themselves are learned: what FiLM by any constant z amounts to."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.gammas = nn.ParameterList(torch.ones(depth) for depth in channels)
        self.betas = nn.ParameterList(torch.zeros(depth) for depth in channels)

    def forward(self) -> Film:
        """(gamma, beta) of every depth."""
        return list(zip(self.gammas, self.betas, strict=True))


@torch.no_grad()
def sentence_vectors(encoder: Encoder, sentences: Sequence[str]) -> Tensor:
    """Unit vectors [., E]."""
    device = next(encoder.model.parameters()).device
    tokens = encoder.tokenizer(list(sentences)).to(device)
    return F.normalize(towers.encode_text(encoder.model, tokens).float(), dim=-1)
