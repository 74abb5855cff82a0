"""Which captions a picture is trained with at a step.

Reads the index and caption sidecars (`corpus.sidecars.join_captions`). The choice is a function of
(seed, sample, epoch) and, where a probability has a schedule, of the share of samples seen: the
rest of the batch, the ranks and the workers have no say. The modes are those of the papers: `mix`
of VeCLIP (arXiv 2310.07699), `both` of DataCompDR (arXiv 2311.17049), `multi_positive` of GBC
(Apple), and `concat` as their control; docs/reference/caption-sampling.md has the formulas.

A source without a caption for a picture is skipped there and the probabilities of the others grow.
Where all that a picture has stand at 0 they count the same. Pictures without any caption are left
out of the pass and counted, unless no objective reads text.

Captions stay in arrow's memory: a million rows are joined in a second or two, and a worker process
that is forked shares them.

Shapes: N rows of the index, S sources, B samples of a batch, P (picture, caption) pairs, K picks
of one source, C captions of a picture at most (of one source, or T of all).
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from capwright.core.errors import CapwrightError
from capwright.corpus.sidecars import join_captions
from capwright.pretrain import caption_plan, sub_captions
from capwright.pretrain.draws import Draws
from capwright.pretrain.schedule import value_at
from capwright.pretrain.settings.sampling import CaptionSource, Sampling

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

AT_ONCE = 65_536  # captions that become Python strings together
SMALLEST = 1e-300  # a weight of 0 comes after all others, and is no division by 0


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The P pairs of a batch, in the order of its pictures."""

    texts: list[str]
    picture_P: Ints  # row of the batch
    set_P: Ints  # caption set: 0, and in the mode `both` 1 for synthetic ones


@dataclass(frozen=True, kw_only=True)
class _Picks:
    """Captions by where they lie."""

    picture_P: Ints
    set_P: Ints
    source_P: Ints
    caption_P: Ints  # position in the source's texts
    slot_P: Ints  # which of a picture's picks, whatever else was picked: tells their draws apart

    def take(self, order_P: Ints) -> "_Picks":
        return _Picks(**{name: value[order_P] for name, value in vars(self).items()})


class CaptionSampler:
    """Chooses captions; `rows` are the pictures that have one."""

    def __init__(
        self,
        index: pa.Table,
        sources: Sequence[CaptionSource],
        sampling: Sampling,
        *,
        required: bool = True,
    ) -> None:
        self.sources, self.sampling = tuple(sources), sampling
        self._sets_S = np.array(sampling.sets_of(sources))
        self._captions = [
            join_captions(index, s.folder, s.sources, s.score if sampling.by_score else None)
            for s in sources
        ]
        self._scores = [
            _score_weights(source, captions.scores, sampling.by_score)
            for source, captions in zip(sources, self._captions, strict=True)
        ]
        has_caption_N = np.zeros(index.num_rows, bool)
        for captions in self._captions:
            has_caption_N |= np.diff(captions.bounds_N1) > 0
        self.without_caption = int((~has_caption_N).sum())
        self.rows: Ints = np.flatnonzero(has_caption_N | (not required))
        if not len(self.rows):
            raise CapwrightError(
                f"none of the {index.num_rows} pictures has a caption from "
                f"{', '.join(source.name for source in sources)}: check the sources and folders in "
                "captions, and that their captions are kept"
            )

    def choose(self, row_B: Ints, draws: Draws, share: float) -> Chosen:
        """Captions of the rows `row_B` when `share` of the samples are seen (0 to 1)."""
        starts_SB = np.stack([c.bounds_N1[row_B] for c in self._captions])
        counts_SB = np.stack([c.bounds_N1[row_B + 1] for c in self._captions]) - starts_SB
        weights_SB = self.weights(counts_SB > 0, share)
        match self.sampling.mode:
            case "mix":
                picks = self._one(weights_SB, starts_SB, counts_SB, draws.uniform("caption", 2))
            case "both":
                picks = self._one_of_each_set(weights_SB, starts_SB, counts_SB, draws)
            case "concat":
                picks = self._one_of_each_source(weights_SB, starts_SB, counts_SB, draws)
            case "multi_positive":
                picks = self._several(weights_SB, starts_SB, counts_SB, draws)
        return self._read(picks, draws)

    def weights(self, has_SB: NDArray[np.bool_], share: float) -> Floats:
        """Probabilities, not yet normed, of the sources that a picture has."""
        values_S = np.array([value_at(source.probability, share) for source in self.sources])
        weights_SB = values_S[:, None] * has_SB
        return np.where(weights_SB.any(axis=0), weights_SB, has_SB)

    def _one(
        self, weights_SB: Floats, starts_SB: Ints, counts_SB: Ints, uniform_B2: Floats
    ) -> _Picks:
        # the first source whose cumulated weight passes the draw, and not one without a weight
        bounds_SB = np.cumsum(weights_SB, axis=0)
        source_B = (uniform_B2[:, 0] * bounds_SB[-1] < bounds_SB).argmax(axis=0)
        picture_P = np.flatnonzero(bounds_SB[-1] > 0)
        source_P = source_B[picture_P]
        where = (source_P, picture_P)
        return _Picks(
            picture_P=picture_P,
            set_P=np.zeros_like(picture_P),
            source_P=source_P,
            caption_P=self._captions_by_draw(
                source_P, starts_SB[where], counts_SB[where], uniform_B2[picture_P, 1]
            ),
            slot_P=np.zeros_like(picture_P),
        )

    def _one_of_each_set(
        self, weights_SB: Floats, starts_SB: Ints, counts_SB: Ints, draws: Draws
    ) -> _Picks:
        parts = []
        for number, purpose in enumerate(("caption", "caption synthetic")):
            here_SB = weights_SB * (self._sets_S == number)[:, None]
            part = self._one(here_SB, starts_SB, counts_SB, draws.uniform(purpose, 2))
            ones_P = np.full_like(part.set_P, number)
            parts.append(_Picks(**{**vars(part), "set_P": ones_P, "slot_P": ones_P}))
        joined = {
            name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])
        }
        return _Picks(**joined).take(np.argsort(joined["picture_P"], kind="stable"))

    def _one_of_each_source(
        self, weights_SB: Floats, starts_SB: Ints, counts_SB: Ints, draws: Draws
    ) -> _Picks:
        uniform_BS = draws.uniform("concat", len(self.sources))
        picture_P, source_P = np.nonzero(weights_SB.T > 0)
        where = (source_P, picture_P)
        picks = _Picks(
            picture_P=picture_P,
            set_P=np.zeros_like(picture_P),
            source_P=source_P,
            caption_P=self._captions_by_draw(
                source_P, starts_SB[where], counts_SB[where], uniform_BS[picture_P, source_P]
            ),
            slot_P=source_P,
        )
        if self.sampling.order == "fixed":
            return picks
        place_BS = draws.uniform("concat order", len(self.sources))
        return picks.take(np.lexsort((place_BS[picture_P, source_P], picture_P)))

    def _several(
        self, weights_SB: Floats, starts_SB: Ints, counts_SB: Ints, draws: Draws
    ) -> _Picks:
        """All captions, or `max_captions` drawn without replacement by their weights."""
        ends_SB = np.cumsum(counts_SB, axis=0)
        slot_T = np.arange(ends_SB[-1].max(initial=0))
        source_BT = (slot_T >= ends_SB[:, :, None]).sum(axis=0)
        picture_B1 = np.arange(weights_SB.shape[1])[:, None]
        exists_BT = source_BT < len(self.sources)
        where = (np.minimum(source_BT, len(self.sources) - 1), picture_B1)
        caption_BT = starts_SB[where] + slot_T - (ends_SB - counts_SB)[where]
        chosen_BT = exists_BT & (weights_SB[where] > 0)
        most = self.sampling.max_captions
        if most is not None and (chosen_BT.sum(axis=1) > most).any():
            weights_BT = self._caption_weights(
                np.where(chosen_BT, source_BT, -1), caption_BT, weights_SB
            )
            # each runs a race of exponential length, faster by its weight: the first ones are a
            # draw without replacement (Efraimidis and Spirakis, 2006)
            uniform_BT = draws.uniform("multi positive", len(slot_T))
            time_BT = -np.log1p(-uniform_BT) / np.maximum(weights_BT, SMALLEST)
            time_BT[~chosen_BT] = np.inf
            place_BT = time_BT.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
            chosen_BT &= place_BT < most
        picture_P, slot_P = np.nonzero(chosen_BT)
        return _Picks(
            picture_P=picture_P,
            set_P=np.zeros_like(picture_P),
            source_P=source_BT[picture_P, slot_P],
            caption_P=caption_BT[picture_P, slot_P],
            slot_P=slot_P,
        )

    def _caption_weights(self, source_BT: Ints, caption_BT: Ints, weights_SB: Floats) -> Floats:
        """The probability of each caption in the mode `mix`, not yet normed over the sources."""
        weights_BT = np.zeros(source_BT.shape)
        for source, scores in enumerate(self._scores):
            here_BT = source_BT == source
            own_BT = here_BT.astype(float)
            if scores is not None:
                own_BT[here_BT] = scores[caption_BT[here_BT]]
                own_BT = _even_where_zero(own_BT, here_BT)
            sum_B = own_BT.cumsum(axis=1)[:, -1]  # cumsum: the same however far rows are padded
            scale_B = weights_SB[source] / np.where(sum_B > 0, sum_B, 1)
            weights_BT += own_BT * scale_B[:, None]
        return weights_BT

    def _captions_by_draw(
        self, source_P: Ints, start_P: Ints, count_P: Ints, uniform_P: Floats
    ) -> Ints:
        """One of the captions from start to start + count: evenly, or by its score."""
        caption_P = start_P + (uniform_P * count_P).astype(np.int64)
        for source, scores in enumerate(self._scores):
            here_K = np.flatnonzero(source_P == source)
            if scores is None or not len(here_K):
                continue
            place_C = np.arange(count_P[here_K].max())
            exists_KC = place_C < count_P[here_K, None]
            at_KC = np.where(exists_KC, start_P[here_K, None] + place_C, 0)
            weights_KC = _even_where_zero(scores[at_KC] * exists_KC, exists_KC)
            bounds_KC = weights_KC.cumsum(axis=1)
            passed_KC = uniform_P[here_K, None] * bounds_KC[:, -1:] < bounds_KC
            caption_P[here_K] = start_P[here_K] + passed_KC.argmax(axis=1)
        return caption_P

    def _read(self, picks: _Picks, draws: Draws) -> Chosen:
        """From places to texts: sub-captions, and in some modes joined or each once."""
        mode, sampling = self.sampling.mode, self.sampling
        texts = self._texts(picks)
        if sampling.sub_caption > 0:
            times = sampling.sub_caption_draws if mode == "multi_positive" else 1
            shape = (int(picks.slot_P.max(initial=0)) + 1, times, sub_captions.DRAWS)
            uniform_BTD3 = draws.uniform("sub-caption", math.prod(shape)).reshape(-1, *shape)
            draws_PD3 = uniform_BTD3[picks.picture_P, picks.slot_P].tolist()
            texts = [
                sub_captions.shortened(text, three, sampling)
                for text, draws_D3 in zip(texts, draws_PD3, strict=True)
                for three in draws_D3
            ]
            picks = picks.take(np.repeat(np.arange(len(picks.picture_P)), times))
        if mode in ("mix", "both"):
            return Chosen(texts=texts, picture_P=picks.picture_P, set_P=picks.set_P)
        of_picture: dict[int, list[str]] = {}
        for picture, text in zip(picks.picture_P.tolist(), texts, strict=True):
            known = of_picture.setdefault(picture, [])
            if text not in known:
                known.append(text)
        if mode == "concat":
            of_picture = {p: [_joined(t, sampling.separator)] for p, t in of_picture.items()}
        counts_P = [len(t) for t in of_picture.values()]
        picture_P = np.repeat(np.array([*of_picture], np.int64), counts_P)
        return Chosen(
            texts=[text for known in of_picture.values() for text in known],
            picture_P=picture_P,
            set_P=np.zeros_like(picture_P),
        )

    def _texts(self, picks: _Picks) -> list[str]:
        texts_P = np.empty(len(picks.source_P), object)
        for source, captions in enumerate(self._captions):
            here_K = np.flatnonzero(picks.source_P == source)
            texts_P[here_K] = captions.texts.take(pa.array(picks.caption_P[here_K])).to_pylist()
        return list(texts_P)

    def texts(self) -> Iterator[str]:
        """Every caption of every source."""
        for captions in self._captions:
            for start in range(0, len(captions.texts), AT_ONCE):
                yield from captions.texts.slice(start, AT_ONCE).to_pylist()

    def counts(self) -> dict[str, tuple[int, int]]:
        """Source name to (pictures with a caption, captions)."""
        return {
            source.name: (int(np.count_nonzero(np.diff(c.bounds_N1))), len(c.texts))
            for source, c in zip(self.sources, self._captions, strict=True)
        }

    def tree(self, share: float) -> list[str]:
        """The mixture when `share` of the samples are seen, for a plan that a human reads."""
        has_SQ, pictures_Q = caption_plan.patterns([c.bounds_N1 for c in self._captions])
        return caption_plan.tree(
            sources=self.sources,
            sampling=self.sampling,
            sets_S=self._sets_S,
            captions=self._captions,
            weights_SQ=self.weights(has_SQ, share),
            pictures_Q=pictures_Q,
        )

    def digest(self) -> str:
        """Stands for all captions and their scores; a run folder is bound to it."""
        hashed = hashlib.blake2b()
        for captions, scores in zip(self._captions, self._scores, strict=True):
            offsets, data = captions.buffers()
            for part in (
                captions.bounds_N1,
                offsets,
                data,
                np.empty(0) if scores is None else scores,
            ):
                hashed.update(len(part).to_bytes(8, "little"))
                hashed.update(np.ascontiguousarray(part).data)
        return hashed.hexdigest()[:12]


def _score_weights(source: CaptionSource, scores: Floats | None, power: float) -> Floats | None:
    """Each caption's score to a power; none is 0. None where the source is drawn from evenly."""
    if scores is None:
        return None
    if len(scores) and np.isnan(scores).all():
        raise CapwrightError(
            f"column {source.score!r} of caption source {source.name!r} in {source.folder} is "
            "empty: choose a column with scores, or leave score out"
        )
    lowest = np.nanmin(scores, initial=0)
    if lowest < 0 or np.isinf(scores).any():
        raise CapwrightError(
            f"column {source.score!r} of caption source {source.name!r} has the value "
            f"{lowest if lowest < 0 else np.inf:g}: a caption is drawn by its score to a power, "
            "so choose a column of finite numbers from 0 up"
        )
    return np.asarray(np.nan_to_num(scores) ** power)


def _even_where_zero(weights_KC: Floats, exists_KC: NDArray[np.bool_]) -> Floats:
    """Weights of captions; a row of zeros has equal ones."""
    return np.where(weights_KC.any(axis=1, keepdims=True), weights_KC, exists_KC)


def _joined(texts: Sequence[str], separator: str) -> str:
    """With one separator between two captions, also after one that ends with its mark."""
    mark = separator.strip()
    parts = [text.rstrip().removesuffix(mark).rstrip() for text in texts[:-1]]
    return separator.join([*(part for part in parts if part), texts[-1]])
