"""The embedded captioner: a frozen ImageNet trunk and a small decoder trained on the corpus itself.

Reads: the index, the pictures, alt text and the few captions by people (a field of the `.json`).
Writes: WORK/features/lite0, WORK/models/small-captioner (safetensors and JSON) and
WORK/captions/describe-small/SHARD.parquet, several captions a picture: the likeliest first
(`prompt` "beam" or "greedy"), then sampled ones ("top-p").
Run: `capwright describe CORPUS --work WORK --with small`.

Algorithm: see `concepts.py` (which names), `small_training.py` (how it learns) and
`small_model.py` (the decoder). A killed run goes on from its last checkpoint, and a picture's
captions depend on the seed and its shard alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from capwright.captions import features
from capwright.captions.describe.concepts import ConceptConfig
from capwright.captions.describe.small_model import DecoderConfig
from capwright.captions.describe.small_training import TrainingConfig
from capwright.captions.human import human_captions
from capwright.captions.runner import (
    FAILED,
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    missing_shards,
    preview,
    run_stage,
    shard_seed,
    stage_folder,
)
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.run_folder import claim
from capwright.corpus.index import corpus_digest, load_index, load_shard

SOURCE = "describe-small"
UNREADABLE = "unreadable picture"
MODEL = "small-captioner"


@dataclass(frozen=True, kw_only=True)
class WritingConfig:
    """How captions are written once the captioner is trained."""

    beams: int = 1
    """Beams of the first caption; 1 is greedy."""
    sampled: int = 2
    """Further captions, sampled."""
    top_p: float = 0.9
    """They are drawn from the likeliest words that make up this probability."""
    batch_size: int = 1536
    """Captions that are written at once."""


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """The embedded captioner."""

    work: Path
    """The work folder, which holds the index."""
    picture_size: int = 128
    """Side in pixels at which the trunk sees pictures; a multiple of 32."""
    human_field: str = "human_caption"
    """Field of a sample's .json that holds a caption by a person."""
    seed: int = 0
    """Seeds weights, batches and samples."""
    concepts: ConceptConfig = field(default_factory=ConceptConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    writing: WritingConfig = field(default_factory=WritingConfig)

    def __post_init__(self) -> None:
        if self.decoder.width % self.decoder.heads:
            raise CapwrightError(
                f"decoder.width is {self.decoder.width}, but must be a multiple of decoder.heads "
                f"({self.decoder.heads}): try 192"
            )
        if not 0 < self.writing.top_p <= 1:
            raise CapwrightError(
                f"writing.top_p is {self.writing.top_p}, but must be above 0 and at most 1: try 0.9"
            )


def run(config: DescribeConfig, running: Running | None = None) -> StageSummary:
    """Compute features, train the captioner and describe every shard that is missing."""
    folder = stage_folder(config.work, SOURCE)
    plan = as_dict(config)
    del plan["work"]
    claim(folder, {**plan, "corpus": corpus_digest(config.work)})
    if missing_shards(config.work, folder):
        prepare(config)
    return run_stage(config.work, folder, plan, partial(make_writer, config), running)


def dry_run(config: DescribeConfig, pictures: int = 10) -> Rows:
    """What the first pictures would be given; trains the captioner, but writes no caption."""
    prepare(config)
    return preview(config.work, partial(make_writer, config), pictures)


def prepare(config: DescribeConfig) -> None:
    """Features and the trained captioner, where they are missing."""
    from capwright.captions.describe.small_model import save_captioner
    from capwright.captions.describe.small_training import Corpus, train_small

    features.run(features.FeaturesConfig(work=config.work, picture_size=config.picture_size))
    folder = config.work / "models" / MODEL
    plan = as_dict(config)
    for key in ("work", "writing"):
        del plan[key]
    claim(folder, {**plan, "corpus": corpus_digest(config.work)})
    weights = folder / "weights"
    if not weights.exists():
        index = load_index(config.work, ["text", "json"])
        corpus = Corpus(
            records=features.load_features(config.work),
            web=index["text"].to_pylist(),
            human=human_captions(index, config.human_field),
        )
        head, captioner = train_small(
            corpus,
            config.concepts,
            config.decoder,
            config.training,
            config.seed,
            folder / "checkpoints",
        )
        save_captioner(weights, head, config.concepts, captioner)


def make_writer(config: DescribeConfig) -> "_Writer":
    """The worker of the stage; `prepare` has run."""
    from capwright.captions.describe.small_model import load_captioner

    head, captioner = load_captioner(config.work / "models" / MODEL / "weights")
    return _Writer(config, head, captioner)


class _Writer:
    """Writes the captions of a shard."""

    def __init__(self, config: DescribeConfig, head: Any, captioner: Any) -> None:
        self.config, self.head, self.captioner = config, head, captioner

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        import torch

        shard = table["shard"][0].as_py()
        keys = table["key"].to_pylist()
        records = self._records(shard, keys)
        seed = shard_seed(self.config.seed, shard)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            texts = write_captions(self.head, self.captioner, records, self.config.writing)
        first = f"beam {self.config.writing.beams}" if self.config.writing.beams > 1 else "greedy"
        prompts = [first, *[f"top-p {self.config.writing.top_p:g}"] * self.config.writing.sampled]
        for _ in range(int((~records["valid"]).sum())):
            progress.failed(UNREADABLE)
        progress.advance(pictures=len(records), captions=len(prompts) * len(records))
        return [
            {
                "key": key,
                "source": SOURCE,
                "text": text if valid else "",
                "model": MODEL,
                "revision": f"seed {self.config.seed}",
                "prompt": prompt,
                "seed": seed,
                "keep": bool(valid),
                "reason": "" if valid else FAILED + UNREADABLE,
            }
            for key, valid, captions in zip(keys, records["valid"], texts, strict=True)
            for prompt, text in zip(prompts, captions, strict=True)
        ]

    def _records(self, shard: str, keys: Sequence[str]) -> Any:
        """The maps of some pictures of a shard; of all but for a preview or a retry."""
        shard_keys = load_shard(self.config.work, shard, ["key"])["key"].to_pylist()
        row = {key: i for i, key in enumerate(shard_keys)}
        return features.load_shard(self.config.work, shard)[[row[key] for key in keys]]


def write_captions(head: Any, captioner: Any, records: Any, how: WritingConfig) -> list[list[str]]:
    """The captions of each record: the likeliest, then the sampled ones."""
    from capwright.captions.describe.concepts import best_concepts
    from capwright.captions.describe.small_model import concept_tensors
    from capwright.captions.maps import load_maps

    best = best_concepts(head, records, captioner.config.concepts)
    step = max(1, how.batch_size // max(1, how.sampled))
    texts: list[list[str]] = []
    for start in range(0, len(records), step):
        rows = np.arange(start, min(start + step, len(records)))
        deep_BMC = load_maps(records, rows).deep_BMC
        memory = captioner.memory(deep_BMC, *concept_tensors(best.rows(rows)))
        likeliest = captioner.write(memory, do_sample=False, num_beams=how.beams)
        sampled: Sequence[str] = ()
        if how.sampled:
            sampled = captioner.write(
                memory,
                do_sample=True,
                top_p=how.top_p,
                top_k=0,
                num_return_sequences=how.sampled,
            )
        for row, text in enumerate(likeliest):
            texts.append([text, *sampled[row * how.sampled : (row + 1) * how.sampled]])
    return texts
