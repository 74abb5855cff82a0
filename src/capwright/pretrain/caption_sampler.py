"""Which caption a picture is trained with: one source by its probability, then one of its captions.

Reads the index and caption sidecars (`corpus.sidecars.captions_of`). The choice is a function of
(seed, sample, epoch), so a picture meets its captions in turn and a resumed run chooses the same.
A source without a caption for a picture is skipped there and the probabilities of the others grow;
pictures without any caption are left out of the pass and counted, unless no objective reads text.

Shapes: N rows of the index, S sources, B samples of a batch.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from capwright.core.config import digest
from capwright.core.errors import CapwrightError
from capwright.corpus.sidecars import captions_of
from capwright.pretrain.config import CaptionSource
from capwright.pretrain.draws import Draws


class CaptionSampler:
    """Chooses captions; `rows` are the pictures that have one."""

    def __init__(
        self, index: pa.Table, sources: Sequence[CaptionSource], *, required: bool = True
    ) -> None:
        self.names = [source.name for source in sources]
        self.captions_SN = [captions_of(index, s.folder, s.sources) for s in sources]
        counts_SN = np.array([[len(c) for c in captions_N] for captions_N in self.captions_SN])
        self._counts_SN = counts_SN.reshape(len(sources), -1)
        self._weights_S = np.array([source.probability for source in sources])
        has_caption_N = self._counts_SN.any(axis=0)
        self.without_caption = int((~has_caption_N).sum())
        self.rows: NDArray[np.int64] = np.flatnonzero(has_caption_N | (not required))
        if not len(self.rows):
            raise CapwrightError(
                f"none of the {index.num_rows} pictures has a caption from "
                f"{', '.join(self.names)}: check the sources and folders in "
                "captions, and that their captions are kept"
            )

    def choose(self, row_B: NDArray[np.int64], draws: Draws) -> list[str]:
        """Captions of the rows `row_B`, "" for a picture without any."""
        counts_SB = self._counts_SN[:, row_B]
        weights_SB = self._weights_S[:, None] * (counts_SB > 0)
        # the first source whose cumulated weight passes the draw, and not one without a weight
        bounds_SB = np.cumsum(weights_SB, axis=0)
        uniform_B2 = draws.uniform("caption", 2)
        source_B = (uniform_B2[:, 0] * bounds_SB[-1] < bounds_SB).argmax(axis=0)
        count_B = counts_SB[source_B, np.arange(len(row_B))]
        nth_B = (uniform_B2[:, 1] * count_B).astype(np.int64)
        return [
            self.captions_SN[source][row][nth] if count else ""
            for source, row, nth, count in zip(source_B, row_B, nth_B, count_B, strict=True)
        ]

    def texts(self) -> Iterator[str]:
        """Every caption of every source."""
        for captions_N in self.captions_SN:
            for captions in captions_N:
                yield from captions

    def counts(self) -> dict[str, tuple[int, int]]:
        """Source name to (pictures with a caption, captions)."""
        return {
            name: (int((counts_N > 0).sum()), int(counts_N.sum()))
            for name, counts_N in zip(self.names, self._counts_SN, strict=True)
        }

    def digest(self) -> str:
        """Stands for all captions; a run folder is bound to it."""
        return digest(self.captions_SN)
