"""Trains the embedded captioner on a corpus: the concept head, then the decoder in two phases.

Reads: the index, its cached feature maps. Writes: checkpoints in the folder that its caller names.

Algorithm. The head learns names from the alt text and the people's captions. The decoder is
trained first on the noisy pairs (those whose text names something that the head can believe of the
picture) in the style `<web>`, then on the people's captions in the style `<human>`, mixed with
some noisy pairs so that rare names are not forgotten. There are few captions by people, so half of
their examples are read with other names: a name is exchanged in the memory and in the caption
alike for one that the corpus uses with the same determiner ("a tiger" for "a pear"), which teaches
the decoder to copy what it is shown. Pictures are mirrored at random, together with the words left
and right. A tenth of the people's captions is held out, and the weights that read those best are
kept.

Shapes: N pictures, K names, T tokens, S memory.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capwright.captions.describe.concepts import (
    PLACE,
    BestConcepts,
    ConceptConfig,
    ConceptHead,
    best_concepts,
    label_matrix,
    train_concepts,
)
from capwright.captions.describe.small_model import (
    HUMAN,
    PAD,
    WEB,
    Captioner,
    DecoderConfig,
    WordCodec,
    concept_tensors,
    pad_tokens,
)
from capwright.captions.lexicon import DETERMINERS, Lexicon, build_lexicon, split_words
from capwright.captions.maps import load_maps
from capwright.captions.training import Phase, draw_batch, train_phase
from capwright.core.errors import CapwrightError

_OTHER_SIDE = {"left": "right", "right": "left"}
MIN_HUMAN = 10  # with fewer captions there is nothing to hold out


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long the decoder trains, and on what."""

    noisy_steps: int = 200
    """Steps on noisy pairs alone."""
    human_steps: int = 300
    """Steps on people's captions with some noisy pairs."""
    batch_size: int = 64
    """Texts in one step."""
    noisy_share: float = 0.25
    """Share of noisy pairs in the second phase's batches."""
    learning_rate: float = 1.5e-3
    """The highest learning rate of the first phase."""
    human_learning_rate: float = 1e-3
    """The highest learning rate of the second phase."""
    believable: float = 0.1
    """A noisy pair counts if the head gives one of its names this probability."""
    swap: float = 0.5
    """Probability that a name of a person's caption is exchanged."""
    mirror: float = 0.5
    """Probability that a picture is mirrored, with left and right exchanged in its text."""
    cell_noise: float = 0.1
    """Standard deviation of the noise on feature cells."""
    held_share: float = 0.1
    """Share of the people's captions that is held out."""
    evaluate_every_steps: int = 50
    """Steps between two looks at the held captions."""


@dataclass(frozen=True)
class Corpus:
    """What training reads: one entry a picture."""

    records: npt.NDArray[Any]
    web: Sequence[str]
    human: Sequence[str]

    @cached_property
    def human_N(self) -> npt.NDArray[np.bool_]:
        """Which pictures have a person's caption."""
        return np.array([bool(text) for text in self.human], np.bool_)


@dataclass
class _Texts:
    """Encoded texts and what is needed to exchange names in them."""

    captioner: Captioner
    best: BestConcepts
    corpus: Corpus
    config: TrainingConfig
    partners: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)


def train_small(
    corpus: Corpus,
    concepts: ConceptConfig,
    decoder: DecoderConfig,
    training: TrainingConfig,
    seed: int,
    folder: Path,
) -> tuple[ConceptHead, Captioner]:
    """Train both networks from random weights; goes on from the checkpoints in `folder`."""
    people = [text for text in corpus.human if text]
    if len(people) < MIN_HUMAN:
        raise CapwrightError(
            f"The corpus has {len(people)} captions by people, and the small captioner needs at "
            f"least {MIN_HUMAN}: name their field of the .json with --set human_field=NAME."
        )
    lexicon = build_lexicon(people, corpus.web)
    if not len(lexicon):
        raise CapwrightError(
            "No name of a thing is used both by the captions by people and by the alt text, so "
            "there is nothing to learn: check the .txt files and the field human_field."
        )
    torch.manual_seed(seed)
    head = ConceptHead(len(lexicon), concepts)
    texts = [human or web for human, web in zip(corpus.human, corpus.web, strict=True)]
    labels_NV = label_matrix(texts, lexicon)
    train_concepts(head, corpus.records, labels_NV, corpus.human_N, concepts, seed, folder)
    best = best_concepts(head, corpus.records, decoder.concepts)
    torch.manual_seed(seed)
    captioner = Captioner(WordCodec.build(people, corpus.web), lexicon, decoder)
    _train_decoder(captioner, best, corpus, training, seed, folder)
    return head, captioner


def believable_rows(
    best: BestConcepts, labels_NV: npt.NDArray[np.bool_], least: float
) -> npt.NDArray[np.bool_]:
    """Which pictures' texts name something that has at least this probability, [N]."""
    named = np.take_along_axis(labels_NV, best.names, 1)
    found: npt.NDArray[np.bool_] = np.any(named & (best.probabilities >= least), axis=1)
    return found


def _train_decoder(
    captioner: Captioner,
    best: BestConcepts,
    corpus: Corpus,
    config: TrainingConfig,
    seed: int,
    folder: Path,
) -> None:
    valid_N = corpus.records["valid"]
    web_NV = label_matrix(corpus.web, captioner.lexicon)
    noisy = np.flatnonzero(valid_N & believable_rows(best, web_NV, config.believable))
    people = np.random.default_rng(seed).permutation(np.flatnonzero(valid_N & corpus.human_N))
    held = np.sort(people[: max(1, round(config.held_share * len(people)))])
    taught = np.sort(people[len(held) :])
    texts = _Texts(captioner, best, corpus, config, exchange_partners(corpus, captioner.lexicon))

    def held_loss() -> float:
        return float(_loss(texts, held, HUMAN, None))

    first = Phase(
        name="captioner on noisy text",
        steps=config.noisy_steps if len(noisy) else 0,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
    )
    train_phase(
        captioner,
        first,
        seed,
        folder,
        lambda step: _loss(texts, draw_batch(seed, first, step, noisy), WEB, (seed, step)),
    )
    web_size = round(config.noisy_share * config.batch_size) if len(noisy) else 0
    second = Phase(
        name="captioner on human captions",
        steps=config.human_steps,
        batch_size=config.batch_size - web_size,
        learning_rate=config.human_learning_rate,
        evaluate_every_steps=config.evaluate_every_steps,
    )
    beside = Phase(name="beside", steps=0, batch_size=web_size, learning_rate=0.0)

    def both(step: int) -> Tensor:
        loss = _loss(texts, draw_batch(seed, second, step, taught), HUMAN, (seed, step))
        if web_size:
            rows = draw_batch(seed, beside, step, noisy)
            loss = loss + config.noisy_share * _loss(texts, rows, WEB, (seed, step))
        return loss

    train_phase(captioner, second, seed, folder, both, held_loss)


def _loss(
    texts: _Texts, rows: npt.NDArray[np.int64], style: str, draw: tuple[int, int] | None
) -> Tensor:
    """The captioner's loss on some pictures; `draw` seeds noise and exchanges, None has neither."""
    captioner, config = texts.captioner, texts.config
    best = texts.best.rows(rows)
    written = texts.corpus.human if style == HUMAN else texts.corpus.web
    captions = [written[row] for row in rows]
    deep_BMC = load_maps(texts.corpus.records, rows).deep_BMC
    if draw is not None:
        deep_BMC = deep_BMC + config.cell_noise * torch.randn_like(deep_BMC)
        rng = np.random.default_rng([*draw, len(style)])
        pairs = [_exchange(texts, c, n, rng) for c, n in zip(captions, best.names, strict=True)]
        captions = [caption for caption, _ in pairs]
        best = BestConcepts(
            np.stack([names for _, names in pairs]), best.probabilities, best.places
        )
        mirrored_B = rng.random(len(rows)) < config.mirror
        deep_BMC, best = _mirror(deep_BMC, best, mirrored_B)
        captions = [mirror_words(c) if m else c for c, m in zip(captions, mirrored_B, strict=True)]
    most = captioner.config.max_tokens
    codec = captioner.codec
    tokens_BT = pad_tokens([codec.encode(c, style, most) for c in captions], codec.id(PAD))
    return captioner.loss(tokens_BT, captioner.memory(deep_BMC, *concept_tensors(best)))


def _exchange(
    texts: _Texts, caption: str, names_K: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[str, npt.NDArray[np.int64]]:
    """Exchange names that stand in both the caption and the memory for others, in both."""
    lexicon = texts.captioner.lexicon
    words = split_words(caption)
    number = {lexicon.names[n]: n for n in names_K}
    changed = names_K.copy()
    swaps: dict[str, str] = {}
    for span in lexicon.find(words):
        old = number.get(span.name)
        if old is None or span.name in swaps or rng.random() >= texts.config.swap:
            continue
        partners = texts.partners.get(int(old), np.empty(0, np.int64))
        new = int(rng.choice(partners)) if len(partners) else int(old)
        if new not in changed:
            changed[changed == old] = new
            swaps[span.name] = lexicon.names[new]
    for span in reversed(lexicon.find(words)):
        if span.name in swaps:
            words[span.start : span.end] = split_words(swaps[span.name])
    return " ".join(words), changed


def _mirror(
    deep_BMC: Tensor, best: BestConcepts, mirrored_B: npt.NDArray[np.bool_]
) -> tuple[Tensor, BestConcepts]:
    """Mirror some pictures' memory from left to right."""
    side = int(deep_BMC.shape[1] ** 0.5)
    square = deep_BMC.unflatten(1, (side, side))
    flipped_BMC = square.flip(2).flatten(1, 2)
    sign_P = np.where([name.endswith("x") for name in PLACE], -1, 1).astype(np.float32)
    places = np.where(mirrored_B[:, None, None], best.places * sign_P, best.places)
    mixed_BMC = torch.where(torch.from_numpy(mirrored_B)[:, None, None], flipped_BMC, deep_BMC)
    return mixed_BMC, BestConcepts(best.names, best.probabilities, places)


def mirror_words(caption: str) -> str:
    """A caption for the mirrored picture: left is right and right is left."""
    return " ".join(_OTHER_SIDE.get(word.lower(), word) for word in split_words(caption))


def exchange_partners(corpus: Corpus, lexicon: Lexicon) -> dict[int, npt.NDArray[np.int64]]:
    """For each name the names that the corpus mostly uses after the same determiner."""
    number = {name: i for i, name in enumerate(lexicon.names)}
    before: dict[int, Counter[str]] = defaultdict(Counter)
    for text in [*corpus.human, *corpus.web]:
        words = split_words(text)
        for span in lexicon.find(words):
            word = words[span.start - 1].lower() if span.start else ""
            if word == "of" or word in DETERMINERS - {"the", "another"}:
                before[number[span.name]][word] += 1
    groups: dict[str, list[int]] = defaultdict(list)
    for name, words_before in sorted(before.items()):
        groups[max(words_before, key=lambda w: (words_before[w], w))].append(name)
    return {
        name: np.array([other for other in group if other != name], np.int64)
        for group in groups.values()
        for name in group
    }
