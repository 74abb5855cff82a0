"""Learned vectors in place of tokens, through a frozen text tower.

M vectors stand behind the start of a text and before its words, which may be none:

    t = text tower([start] v_1 ... v_M words [end]), v from N(0, 0.02)

They are put in behind the tower's embedding table, which is all that a tower needs to have:
placeholders are tokenized, and a hook replaces what the table gives for them. So the end of the
text, where the tower reads its answer, is found as ever.

Shapes: M learned vectors, D features of a token, L context length, T texts, Q names, E joint space.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.evaluate.encoder import Encoder
from capwright.models import towers

INITIAL_STD = 0.02


class PrefixedTexts(nn.Module):
    """Unit vectors of names behind a learned beginning; the beginning is all that it holds.

    Raises CapwrightError for a text tower without an embedding table, and where beginning and name
    do not fit into the context.
    """

    def __init__(self, encoder: Encoder, vectors: int, *, seed: int = 0) -> None:
        super().__init__()
        self._encoder = (encoder,)  # in a tuple, so that its parameters are not this module's
        self._table = (_embedding_table(encoder.model),)
        draws = torch.Generator().manual_seed(seed)
        first = torch.randn(vectors, self._table[0].embedding_dim, generator=draws)
        self.prefix_MD = nn.Parameter(INITIAL_STD * first.to(self._table[0].weight.device))

    def forward(self, names: Sequence[str]) -> Tensor:
        """Unit vectors [Q, E]; differentiable in the beginning alone."""
        encoder, table = self._encoder[0], self._table[0]
        tokens_QL, start = with_placeholders(encoder, names, len(self.prefix_MD))
        with _replaced(table, self.prefix_MD, start):
            vectors_QE = towers.encode_text(encoder.model, tokens_QL.to(table.weight.device))
        return F.normalize(vectors_QE.float(), dim=-1)


def with_placeholders(encoder: Encoder, names: Sequence[str], vectors: int) -> tuple[Tensor, int]:
    """(tokens [Q, L], where the placeholders begin): each name moved back by `vectors` places."""
    tokens_QL = encoder.tokenizer(list(names))
    context = tokens_QL.shape[1]
    empty_L, other_L = encoder.tokenizer(["", "a"])
    start = int(empty_L[0] == other_L[0] == tokens_QL[0, 0])  # SigLIP's texts have no start token
    padding = empty_L[-1]
    used = (tokens_QL != padding).long() * torch.arange(1, context + 1)
    longest_Q = used.amax(dim=1) + int(_ends_like_padding(encoder, padding))
    if int(longest_Q.max()) + vectors > context:
        name = names[int(longest_Q.argmax())]
        raise CapwrightError(
            f"{vectors} learned vectors and the name {name!r} do not fit into the {context} tokens "
            "that the text tower reads: learn fewer vectors, or shorten the name"
        )
    placeholder = other_L[start]  # of "a": any token but the end, which pooling seeks
    middle = placeholder.expand(len(tokens_QL), vectors)
    moved = torch.cat([tokens_QL[:, :start], middle, tokens_QL[:, start:]], dim=1)
    return moved[:, :context], start


def _ends_like_padding(encoder: Encoder, padding: Tensor) -> bool:
    """Whether a text may end with a token that looks like padding, as SigLIP's do."""
    tower = getattr(encoder.model, "text", encoder.model)
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", ""))
    return pool != "argmax" and not (pool == "eos" and int(padding) != tower.eos_id)


def _embedding_table(model: Any) -> nn.Embedding:
    tower = getattr(model, "text", model)  # open_clip's older class is its own text tower
    table = getattr(tower, "token_embedding", None)
    if table is None and hasattr(getattr(tower, "transformer", None), "get_input_embeddings"):
        table = tower.transformer.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise CapwrightError(
            f"the text tower {type(tower).__name__} has no embedding table that learned vectors "
            "could be put behind: choose another model, or an arm without them"
        )
    return table


@contextmanager
def _replaced(table: nn.Embedding, prefix_MD: Tensor, start: int) -> Iterator[None]:
    """Inside the block the table gives `prefix_MD` for the tokens from `start` on."""

    def put_in(module: nn.Module, inputs: Any, rows_TLD: Tensor) -> Tensor:
        middle = prefix_MD.to(rows_TLD.dtype).expand(len(rows_TLD), -1, -1)
        after = rows_TLD[:, start + len(prefix_MD) :]
        return torch.cat([rows_TLD[:, :start], middle, after], dim=1)

    handle = table.register_forward_hook(put_in)
    try:
        yield
    finally:
        handle.remove()
