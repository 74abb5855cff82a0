"""What one rank sees of a step: pictures, captions, and which belong together.

A picture may have several global views (self-distillation) and several captions, equal captions are
encoded once. `part` cuts the batch for gradient accumulation.

Shapes: B pictures of this rank, V views of a picture, H image side, U different captions, L context
length, P (picture, caption) pairs, N patches of a picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of a step, or a part of it."""

    images_BV3HH: Tensor  # float, normalised
    tokens_UL: Tensor  # int64, each different caption once
    text_ids_U: Tensor  # int64, equal for captions with equal tokens, on any rank
    pair_picture_P: Tensor  # int64, row of images_BV3HH
    pair_text_P: Tensor  # int64, row of tokens_UL
    pair_set_P: Tensor  # int64, caption set: 0, and in the mode `both` 1 for synthetic ones
    sample_ids_B: Tensor  # int64, row of the index
    patch_order_BN: Tensor  # int64, a random order of the patches
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # what objectives brought: [B, ...]
    caption_sets: int = 1  # 2 in the mode `both`
    step: int = 0
    encoded_U: Tensor | None = None  # rows of tokens_UL that this part encodes; None is all

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """In page-locked memory; PyTorch's loader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Any) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {k: change(v) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed, extras={k: change(v) for k, v in self.extras.items()})

    @property
    def pictures(self) -> int:
        """B."""
        return len(self.images_BV3HH)

    @property
    def tokens_to_encode_UL(self) -> Tensor:
        """The captions that this part encodes."""
        return self.tokens_UL if self.encoded_U is None else self.tokens_UL[self.encoded_U]

    def pairs_of(self, caption_set: int) -> tuple[Tensor, Tensor]:
        """(pair_picture, pair_text) of one caption set."""
        chosen = self.pair_set_P == caption_set
        return self.pair_picture_P[chosen], self.pair_text_P[chosen]

    def part(self, i: int, parts: int) -> "Batch":
        """The i-th of `parts` slices of the pictures, with their pairs, and of the captions.

        Features of the parts, concatenated in order, are those of the whole batch.
        """
        assert self.encoded_U is None, "a part is not cut again"
        rows = _slice(i, parts, self.pictures)
        texts = _slice(i, parts, len(self.tokens_UL))
        mine_P = (self.pair_picture_P >= rows.start) & (self.pair_picture_P < rows.stop)
        return replace(
            self,
            images_BV3HH=self.images_BV3HH[rows],
            pair_picture_P=self.pair_picture_P[mine_P] - rows.start,
            pair_text_P=self.pair_text_P[mine_P],
            pair_set_P=self.pair_set_P[mine_P],
            sample_ids_B=self.sample_ids_B[rows],
            patch_order_BN=self.patch_order_BN[rows],
            extras={name: value[rows] for name, value in self.extras.items()},
            encoded_U=torch.arange(texts.start, texts.stop, device=self.tokens_UL.device),
        )


def _slice(i: int, parts: int, count: int) -> slice:
    return slice(i * count // parts, (i + 1) * count // parts)
