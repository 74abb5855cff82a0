"""Duplicates: which pictures of a corpus are one, and which are in an evaluation set.

Reads: the index alone (`--with hash`) or the pictures as well (`--with embeddings`), and the index
of another work folder (`--against`). Writes: WORK/captions/dedup/SHARD.parquet, a row a picture:
`keep`, the reason, and the columns below, and manifest.json. `select` drops what was not kept.
Run: `capwright dedup CORPUS --work WORK [--against WORK2] [--with embeddings --model MODEL]`.

    kind          exact: the same bytes. near: within `max_distance` bits of the perceptual hash, or
                  `min_similarity` of the embeddings. text: `max_same_text` others have the same
                  text. evaluation: exact or near to a picture of the other work folder.
                  Null where the picture is kept.
    duplicate_of  SHARD/KEY of the picture that is kept instead, or of the evaluation picture
    distance      to that picture: bits of the hash, or 1 - cosine of the embeddings
    group_id      a number that the kept picture and its duplicates share, null where it has none
    text_copies   how many other pictures have the same text, letters' case and spaces aside

Algorithm: pictures that may be near (`near.py`, `embeddings.py`) form connected components. In
each the largest picture leads, the first in the index among equals; what is near to it is its
duplicate, and of the rest the largest leads again, so that chains of small changes do not drop a
picture that is near to none that is kept. All is held in arrays, about 200 bytes a picture.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capwright.captions.near import BITS, Floats, Hashes, HashLikeness, Ints
from capwright.captions.runner import (
    CaptionShard,
    Rows,
    ShardProgress,
    StageSummary,
    run_stage,
    stage_folder,
)
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.corpus.index import corpus_digest, load_shard, shard_sizes

STAGE = "dedup"
EXTRA = (
    pa.field("group_id", pa.int64()),
    pa.field("duplicate_of", pa.string()),
    pa.field("kind", pa.string()),
    pa.field("distance", pa.float32()),
    pa.field("text_copies", pa.int32()),
)
KINDS = ("", "exact", "near", "text", "evaluation")
KEPT, EXACT, NEAR, TEXT, EVALUATION = range(5)
REASONS = (
    "",
    "dropped: exact duplicate",
    "dropped: near duplicate",
    "dropped: text of too many pictures",
    "dropped: in the evaluation set",
)
LARGEST = "kept: largest of its duplicates"
ROUNDS = 64  # leaders that a component may have; what is near to none of them is kept
Way = Literal["hash", "embeddings"]


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """What counts as a duplicate."""

    work: Path
    """The work folder, which holds the index."""
    against: Path | None = None
    """Work folder of a set, such as an evaluation set, whose pictures the corpus must not have."""
    way: Way = "hash"
    """Compare perceptual hashes (in the index), or embeddings of an open_clip model."""
    max_distance: int = 6
    """Bits of 64 in which hashes of near pictures differ at most. Were hashes of different pictures
    uniformly random, ten million would have 200 pairs within 6 bits, 14,000 within 8 and 500,000
    within 10; those of real pictures, which resemble each other, have more."""
    model: str = ""
    """For embeddings: a checkpoint folder, hf-hub:ORG/REPOSITORY or MODEL/TAG of open_clip."""
    min_similarity: float = 0.95
    """For embeddings: cosine from which pictures are near."""
    batch_size: int = 64
    """For embeddings: pictures in one pass through the model."""
    max_same_text: int | None = None
    """The most pictures that are kept of those with the same text; None keeps them all."""

    def __post_init__(self) -> None:
        if self.way not in get_args(Way):
            raise CapwrightError(f"way is {self.way!r}, but must be hash or embeddings")
        if (self.way == "embeddings") != bool(self.model):
            raise CapwrightError(
                f"the way is {self.way} and the model {self.model!r}, but embeddings need a model "
                "and hashes have none: give --with embeddings --model MODEL, or neither"
            )
        if not 0 <= self.max_distance <= BITS // 4:
            raise CapwrightError(
                f"max_distance is {self.max_distance}, but must be from 0 to {BITS // 4}: try 6"
            )
        if not 0 < self.min_similarity <= 1:
            raise CapwrightError(
                f"min_similarity is {self.min_similarity}, but must be above 0 and at most 1: "
                "try 0.95"
            )
        if self.max_same_text is not None and self.max_same_text < 1:
            raise CapwrightError(
                f"max_same_text is {self.max_same_text}, but must be at least 1, or null for all"
            )


class Likeness(Protocol):
    """Which pictures are near to each other."""

    limit: float
    """The greatest distance of near pictures."""

    def components(self, rows: Ints) -> Ints:
        """Numbers that rows share with those that they may be near to."""
        ...

    def distance(self, left: Ints, right: Ints) -> Floats:
        """Of pairs of rows."""
        ...

    def nearest_other(self) -> tuple[Ints, Floats]:
        """For every picture: the nearest of the other set within the limit, or -1; its distance."""
        ...


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the index says of N pictures, in order."""

    sha_N2: Hashes
    """The first 128 bits of the files' hashes."""
    phash_N: Hashes
    area_N: Ints
    """Pixels."""
    text_N: Hashes
    """A hash of the text, 0 where there is none."""


@dataclass(kw_only=True)
class Duplicates:
    """What was found out about N pictures."""

    kind_N: npt.NDArray[np.int8]
    keeper_N: Ints
    """The picture that is kept instead, or that of the evaluation set; -1 where it is kept."""
    distance_N: Floats
    leads_N: npt.NDArray[np.bool_]
    """Whether duplicates of it are dropped."""
    text_copies_N: Ints


def run(config: DedupConfig) -> StageSummary:
    """Compare all pictures and write the shards that are missing."""
    plan = as_dict(config)
    del plan["work"]
    if config.against:
        plan["against"] = corpus_digest(config.against)
    folder = stage_folder(config.work, STAGE)
    return run_stage(config.work, folder, plan, partial(_worker, config), extra=EXTRA)


def load_facts(work: Path) -> Facts:
    """Read the index, a shard at a time."""
    sizes = shard_sizes(work)
    parts: list[tuple[Any, ...]] = []
    with Progress("dedup: index", sum(sizes.values()), "pictures") as progress:
        for shard in sizes:
            table = load_shard(work, shard, ["sha256", "phash", "width", "height", "text"])
            digits = "".join(sha[:32] for sha in table["sha256"].to_pylist())
            area = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
            texts = [_text_hash(text) for text in table["text"].to_pylist()]
            parts.append(
                (
                    np.frombuffer(bytes.fromhex(digits), np.uint64).reshape(-1, 2),
                    table["phash"].to_numpy().view(np.uint64),
                    area,
                    np.array(texts, np.uint64),
                )
            )
            progress.advance(table.num_rows)
    sha_N2, phash_N, area_N, text_N = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Facts(sha_N2=sha_N2, phash_N=phash_N, area_N=area_N, text_N=text_N)


def find(facts: Facts, other: Facts | None, likeness: Likeness, config: DedupConfig) -> Duplicates:
    """Decide for every picture; see the module's docstring."""
    count = len(facts.phash_N)
    picture_N, other_picture = _same_bytes(facts, other)
    found = Duplicates(
        kind_N=np.zeros(count, np.int8),
        keeper_N=np.full(count, -1),
        distance_N=np.zeros(count, np.float32),
        leads_N=np.zeros(count, np.bool_),
        text_copies_N=_text_copies(facts.text_N, picture_N),
    )
    if other is not None:
        _mark_evaluation(found, picture_N, other_picture, likeness)
    kept = np.flatnonzero(found.kind_N == KEPT)
    _, first, group = np.unique(picture_N[kept], return_index=True, return_inverse=True)
    rows = kept[first]  # one of each picture, the first in the index
    leader, distance = _leaders(rows, facts.area_N, likeness)
    found.keeper_N[kept], found.distance_N[kept] = leader[group], distance[group]
    same = picture_N[found.keeper_N[kept]] == picture_N[kept]
    found.kind_N[kept] = np.where(same, EXACT, NEAR)
    _keep(found, kept[found.keeper_N[kept] == kept])
    if config.max_same_text is not None:
        _mark_texts(found, facts, config.max_same_text)
    dropped = np.isin(found.kind_N, (EXACT, NEAR))
    found.leads_N[found.keeper_N[dropped]] = True
    return found


def _keep(found: Duplicates, rows: Ints) -> None:
    found.kind_N[rows], found.keeper_N[rows] = KEPT, -1


def _same_bytes(facts: Facts, other: Facts | None) -> tuple[Ints, Ints]:
    """A number for every picture of both sets that files with the same bytes share."""
    sha_N2 = facts.sha_N2 if other is None else np.concatenate([facts.sha_N2, other.sha_N2])
    order = np.lexsort((sha_N2[:, 1], sha_N2[:, 0]))
    new = np.ones(len(order), np.bool_)
    new[1:] = (sha_N2[order[1:]] != sha_N2[order[:-1]]).any(1)
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new) - 1
    return number[: len(facts.sha_N2)], number[len(facts.sha_N2) :]


def _mark_evaluation(
    found: Duplicates, picture_N: Ints, other_picture: Ints, likeness: Likeness
) -> None:
    index, distance = likeness.nearest_other()
    numbers, first = np.unique(other_picture, return_index=True)
    at = np.minimum(np.searchsorted(numbers, picture_N), len(numbers) - 1)
    same = numbers[at] == picture_N
    index[same], distance[same] = first[at[same]], 0.0
    inside = index >= 0
    found.kind_N[inside] = EVALUATION
    found.keeper_N[inside], found.distance_N[inside] = index[inside], distance[inside]


def _leaders(rows: Ints, area_N: Ints, likeness: Likeness) -> tuple[Ints, Floats]:
    """For every row the one that leads it (itself where it is kept), and the distance to it."""
    labels = likeness.components(rows)
    leader, distance = rows.copy(), np.zeros(len(rows), np.float32)
    _, component, size = np.unique(labels, return_inverse=True, return_counts=True)
    left = np.flatnonzero(size[component] > 1)
    left = left[np.lexsort((rows[left], -area_N[rows[left]], labels[left]))]
    for _ in range(ROUNDS):
        if not len(left):
            break
        begins = np.ones(len(left), np.bool_)
        begins[1:] = labels[left[1:]] != labels[left[:-1]]
        leads = rows[left[begins]][np.cumsum(begins) - 1]
        apart = likeness.distance(leads, rows[left])
        near = (apart <= likeness.limit) | begins
        leader[left[near]], distance[left[near]] = leads[near], np.where(begins, 0, apart)[near]
        left = left[~near]
    return leader, distance


def _text_copies(text_N: Hashes, picture_N: Ints) -> Ints:
    """How many other pictures have the same text."""
    texts, node = np.unique(text_N, return_inverse=True)
    order = np.lexsort((picture_N, node))
    new = np.ones(len(order), np.bool_)
    new[1:] = (node[order[1:]] != node[order[:-1]]) | (
        picture_N[order[1:]] != picture_N[order[:-1]]
    )
    pictures = np.bincount(node[order[new]], minlength=len(texts))
    copies: Ints = np.where(text_N == 0, 0, pictures[node] - 1)
    return copies


def _mark_texts(found: Duplicates, facts: Facts, most: int) -> None:
    """Of the kept pictures with one text, drop those after the first `most`."""
    rows = np.flatnonzero((found.kind_N == KEPT) & (facts.text_N != 0))
    rows = rows[np.lexsort((rows, facts.text_N[rows]))]
    _, first, size = np.unique(facts.text_N[rows], return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(first, size)
    late = place >= most
    found.kind_N[rows[late]] = TEXT
    found.keeper_N[rows[late]] = rows[np.repeat(first, size)[late]]


def _worker(config: DedupConfig) -> CaptionShard:
    facts = load_facts(config.work)
    other = load_facts(config.against) if config.against else None
    found = find(facts, other, _likeness(config, facts, other), config)
    evaluation = found.kind_N == EVALUATION
    inside = _names(config.work, found.keeper_N[(found.kind_N != KEPT) & ~evaluation])
    outside = _names(config.against, found.keeper_N[evaluation]) if config.against else {}
    sizes = shard_sizes(config.work)
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))

    def write(table: pa.Table, progress: ShardProgress) -> Rows:
        keys = table["key"].to_pylist()
        start = starts[table["shard"][0].as_py()]
        rows = [
            _row(key, start + i, found, outside if evaluation[start + i] else inside)
            for i, key in enumerate(keys)
        ]
        progress.advance(pictures=len(rows))
        return rows

    return write


def _likeness(config: DedupConfig, facts: Facts, other: Facts | None) -> Likeness:
    if config.way == "embeddings":
        from capwright.captions.embeddings import EmbeddingLikeness

        return EmbeddingLikeness(
            work=config.work,
            other=config.against,
            model=config.model,
            min_similarity=config.min_similarity,
            batch_size=config.batch_size,
        )
    others = other.phash_N if other else np.empty(0, np.uint64)
    return HashLikeness(facts.phash_N, others, config.max_distance)


def _row(key: str, row: int, found: Duplicates, names: dict[int, str]) -> dict[str, Any]:
    kind, keeper = int(found.kind_N[row]), int(found.keeper_N[row])
    leads = bool(found.leads_N[row])
    grouped = kind in (EXACT, NEAR)
    return {
        "key": key,
        "source": STAGE,
        "text": "",
        "keep": kind == KEPT,
        "reason": LARGEST if leads and kind == KEPT else REASONS[kind],
        "group_id": keeper if grouped else row if leads else None,
        "duplicate_of": names[keeper] if kind != KEPT else None,
        "kind": KINDS[kind] or None,
        "distance": None if kind == KEPT else float(found.distance_N[row]),
        "text_copies": int(found.text_copies_N[row]),
    }


def _names(work: Path, rows: Ints) -> dict[int, str]:
    """SHARD/KEY of the rows that are asked for."""
    return dict(_each_name(work, np.unique(rows)))


def _each_name(work: Path, wanted: Ints) -> Iterator[tuple[int, str]]:
    start = 0
    for shard, size in shard_sizes(work).items():
        inside = wanted[(wanted >= start) & (wanted < start + size)]
        if len(inside):
            keys = load_shard(work, shard, ["key"])["key"].take(pa.array(inside - start))
            for row, key in zip(inside.tolist(), keys.to_pylist(), strict=True):
                yield row, f"{shard}/{key}"
        start += size


def _text_hash(text: str) -> int:
    plain = " ".join(text.lower().split()).rstrip(".")
    if not plain:
        return 0
    hashed = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(hashed, "little") | 1
