"""What an objective is: one loss in two phases, so that accumulation is exact for all of them.

Phase 1, `encode`, is work on single samples (passes through a tower, a teacher's answer, a sample's
own reconstruction error) and may be called on parts of a batch. Phase 2, `loss`, gets the features
of the whole batch and does what mixes samples. With cached features (GradCache: Gao et al.,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983) the
gradient of a batch in parts is that of the whole batch.

Shapes: B pictures, V views, U different captions, P pairs, E embedding, D features, S stored side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn

from capwright.pretrain.batch import Batch
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.distributed import Group
from capwright.pretrain.draws import Draws

Features = Mapping[str, Tensor]


@dataclass(frozen=True)
class Terms:
    """A loss whose mean over ranks is the loss of the global batch, and what to log beside it."""

    loss: Tensor
    logged: Mapping[str, Tensor] = field(default_factory=dict)  # scalars without gradient


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an objective's `extras` are made from, for one rank's pictures of a step."""

    row_B: NDArray[np.int64]  # rows of the index
    epoch_B: NDArray[np.int64]
    draws: Draws
    pixels_BSS3: NDArray[np.uint8] | None  # stored pictures; None where views come from elsewhere
    theta_BV23: Tensor  # affine_grid transforms of the main views; theta[..., 0, 0] < 0 is mirrored
    texts_P: list[str]  # captions of the pairs
    pair_picture_P: NDArray[np.int64]


class Extra(Protocol):
    """Makes tensors [B, ...] beside the pictures; runs in the loader, so it can be pickled."""

    def __call__(self, request: Request) -> dict[str, Tensor]:
        """Tensors by name; names begin with the objective's."""
        ...


class ViewMaker(Protocol):
    """Makes the views itself, in place of random crops of the stored pictures."""

    def __call__(self, row_B: NDArray[np.int64], draws: Draws) -> Tensor:
        """Float images [B, V, 3, H, H] in 0 to 1."""
        ...


class BaseObjective(nn.Module):
    """The defaults of an objective; see the module's docstring and `objectives/__init__.py`."""

    uses: ClassVar[tuple[str, ...]] = ("image", "text")  # towers that it trains; "scale" of cosines
    needs: ClassVar[tuple[str, ...]] = ()  # shared features: "image", "text", "patches"
    private: ClassVar[tuple[str, ...]] = ()  # those of them that `encode` alone reads

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        super().__init__()

    @classmethod
    def views(cls, config: PretrainConfig) -> int:
        """Global views of a picture that it wants."""
        return 1

    @classmethod
    def extras(cls, config: PretrainConfig, index: pa.Table) -> Extra | None:
        """What batches have to bring for it."""
        return None

    @classmethod
    def view_maker(cls, config: PretrainConfig, index: pa.Table) -> ViewMaker | None:
        """Where pictures come from if not from random crops."""
        return None

    def encode(self, model: Any, batch: Batch, shared: Features) -> dict[str, Tensor]:
        """Phase 1: its own features of the samples, each [B, ...]; `shared` is of the same part."""
        return {}

    def loss(self, features: Features, batch: Batch, scale: Tensor, group: Group) -> Terms:
        """Phase 2: the loss from shared and own features of the whole batch."""
        raise NotImplementedError

    def after_step(self, model: Any, share: float) -> None:
        """After an optimiser step, when `share` of the samples are seen: moving averages."""

    def alarm(self, logged: Mapping[str, float]) -> str:
        """A sentence if what was logged says that the method has collapsed, else ""."""
        return ""
