"""Is this corpus any good, before anybody pays for a training? The numbers behind the audit's page.

Reads: the index and the sidecars of every describe, fuse and select stage that is there, those of
score-clip where it ran, and the pictures of a seeded sample, no others. Writes:
WORK/audit/audit.json and WORK/audit/pictures/*.jpg, which `report/audit_page.py` makes a page of.
Run: `capwright audit CORPUS --work WORK`.

Counts are over all rows, by DuckDB, a shard or a column at a time; what reads texts closely
(tokens, languages, names, n-grams) is measured on a sample of each source, and the caption quality
index (`quality_index.py`) on a part of that sample.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capwright.captions import audit_texts
from capwright.captions.audit_counts import corpus_counts, stage_counts, text_counts
from capwright.captions.candidates import ALT, caption_stages
from capwright.captions.lexicon import Lexicon, LexiconConfig, corpus_lexicon
from capwright.captions.quality_index import VERSION, Quality, QualityConfig
from capwright.captions.runner import stage_folder
from capwright.captions.sampled_pairs import (
    PLACE_COLUMNS,
    Pair,
    PictureFeatures,
    draw_pairs,
    source_quality,
)
from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, write_json
from capwright.corpus.index import load_shard
from capwright.corpus.pictures import PictureError, open_picture
from capwright.corpus.places import ByteReader, places
from capwright.corpus.sidecars import has_sidecar, read_sidecars
from capwright.evaluate.named_objects import normal_name, truth_of

SELECT, CLIP = "select", "score-clip"
BOXES = "boxes.json"
SHOWN_SIDE = 240  # pixels of the longer side of a picture on the page


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What is looked at, and how closely."""

    work: Path
    """The work folder, which holds the index and the captions."""
    corpus: str = "CORPUS"
    """How the corpus is called in the commands that the page recommends."""
    stages: tuple[str, ...] = ()
    """Stages beside the alt text; empty takes every describe, fuse and select stage."""
    sample: int = 20_000
    """Pictures whose texts are read closely, of each source."""
    shown: int = 6
    """Pictures with the worst captions that are shown for each source, and as many of the best."""
    truth: str = ""
    """Where the true objects of a picture are: a field of its json (a list of names), or a member
    with boxes (`KEY.boxes.json`); empty takes boxes.json where samples have it."""
    human_field: str = "human_caption"
    """Field of a sample's .json that holds a caption by a person; the lexicon learns from it."""
    wordnet: bool = True
    """Whether WordNet's names count as concepts."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """How the caption quality index is measured."""

    def __post_init__(self) -> None:
        for name in ("sample", "shown"):
            if getattr(self, name) < 1:
                raise CapwrightError(f"{name} is {getattr(self, name)}, but must be at least 1")


@dataclass(frozen=True, kw_only=True)
class AuditSummary:
    """The index of every source, and where the numbers are."""

    folder: Path
    pictures: int
    index: dict[str, float | None]
    seconds: float


def run(config: AuditConfig) -> AuditSummary:
    """Measure every source and write what the page shows."""
    began = time.monotonic()
    folder = config.work / "audit"
    stages = sources_of(config)
    lexicon = _lexicon(config, stages)
    pictures = PictureFeatures(config.work, config.quality.picture_size)
    found = [_source(config, name, lexicon, pictures) for name in (ALT, *stages)]
    sources = [source for source in found if source["texts"]]
    if not sources:
        raise CapwrightError(
            f"{config.work} has no text at all: index a corpus with alt text, or run "
            f"`capwright describe {config.corpus} --work {config.work}` first"
        )
    audit = {
        **corpus_counts(config.work),
        "version": VERSION,
        "corpus": config.corpus,
        "work": str(config.work),
        "sources": sources,
        "missing": missing_parts(config, stages, sources),
        "settings": as_dict(config),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(folder / "audit.json", audit)
    return AuditSummary(
        folder=folder,
        pictures=audit["pictures"],
        index={source["name"]: source["quality"]["index"] for source in sources},
        seconds=audit["seconds"],
    )


def sources_of(config: AuditConfig) -> list[str]:
    """The stages that are audited, descriptions first, what was selected last."""
    there = caption_stages(config.work, complete=False)
    found = sorted(there, key=lambda stage: (not stage.startswith("describe"), stage))
    if stage_folder(config.work, SELECT).is_dir():
        found.append(SELECT)
    unknown = [stage for stage in config.stages if stage not in found]
    if unknown:
        raise CapwrightError(
            f"stage {unknown[0]!r} has no captions in {config.work}: there are "
            f"{', '.join(found) or 'none'}; run that stage first or leave it out of --stages"
        )
    return [s for s in found if not config.stages or s in config.stages]


def missing_parts(
    config: AuditConfig, stages: Sequence[str], sources: Sequence[dict[str, Any]]
) -> list[dict[str, str]]:
    """What the page lacks, and the command that would add it."""
    tail = f"{config.corpus} --work {config.work}"
    wanted = {
        "descriptions of the pictures": ("describe", f"capwright describe {tail}"),
        "alt text and descriptions fused": ("fuse", f"capwright fuse {tail}"),
        "a choice among them, with counted reasons": (SELECT, f"capwright select {tail}"),
    }
    found = [
        {"what": what, "command": command}
        for what, (prefix, command) in wanted.items()
        if not config.stages and not any(stage.split("-")[0] == prefix for stage in stages)
    ]
    if not any(source["scores"]["by"] == CLIP for source in sources):
        command = f"capwright score {tail} --with clip"
        found.append({"what": "scores of every caption by CLIP", "command": command})
    if not any(source["truth"] for source in sources):
        command = f"capwright audit {tail} --truth FIELD"
        found.append({"what": "hallucinations, from a labelled sample", "command": command})
    return found


def _source(
    config: AuditConfig, name: str, lexicon: Lexicon, pictures: PictureFeatures
) -> dict[str, Any]:
    folder = None if name == ALT else stage_folder(config.work, name)
    drawn = draw_pairs(config.work, folder, config.sample, config.quality.seed)
    base = {"name": name, "texts": drawn.texts, "coverage": drawn.coverage}
    if not drawn.texts:
        return base
    texts = [pair.text for pair in drawn.pairs]
    measured = source_quality(config.work, folder, config.quality, pictures)
    quality, pairs = measured.quality, measured.pairs
    return {
        **base,
        "with_text": drawn.with_text,
        "sampled": len(texts),
        **(stage_counts(config.work, name) if folder else {}),
        **text_counts(config.work, folder),
        "quality": as_dict(replace(quality, pair_bits=())),
        "scores": _scores(config, pairs, quality),
        "tokens": audit_texts.lengths(texts),
        "junk": audit_texts.kinds_of_junk(texts),
        "languages": audit_texts.top(audit_texts.languages(texts), 8),
        "languages_of": min(len(texts), audit_texts.LANGUAGE_TEXTS),
        "concepts": audit_texts.concepts(texts, lexicon),
        "diversity": audit_texts.diversity(texts),
        "truth": _truth(config, drawn.pairs),
        **_extremes(config, pairs, quality),
    }


def _lexicon(config: AuditConfig, stages: Sequence[str]) -> Lexicon:
    describe = next((stage for stage in stages if stage.startswith("describe")), "describe-small")
    settings = LexiconConfig(wordnet=config.wordnet)
    return corpus_lexicon(config.work, describe, config.human_field, settings)


def _scores(config: AuditConfig, pairs: Sequence[Pair], quality: Quality) -> dict[str, Any]:
    """A histogram of the sample's scores: by the stage score-clip, or else the index's own bits."""
    scores = _clip_scores(config.work, pairs)
    if scores:
        return {"by": CLIP, **audit_texts.histogram(scores, 0, 1, 20)}
    if quality.pair_bits:
        most = config.quality.most_bits
        return {"by": "bits", **audit_texts.histogram(quality.pair_bits, -most, most, 28)}
    return {"by": "", "edges": [0, 1], "counts": [0]}


def _clip_scores(work: Path, pairs: Sequence[Pair]) -> list[float]:
    folder = stage_folder(work, CLIP)
    wanted: dict[str, dict[tuple[str, str], None]] = {}
    for pair in pairs:
        wanted.setdefault(pair.shard, {})[pair.key, pair.text] = None
    found: list[float] = []
    for shard, texts in wanted.items():
        if not has_sidecar(folder, shard):
            continue
        table = read_sidecars(folder, [shard], ["key", "text", "score"])
        keys = pa.array({key for key, _ in texts}, pa.string())
        table = table.filter(pc.is_in(table["key"], value_set=keys))
        columns = (table[name].to_pylist() for name in ("key", "text", "score"))
        found += [s for k, t, s in zip(*columns, strict=True) if (k, t) in texts and s is not None]
    return found


def _truth(config: AuditConfig, pairs: Sequence[Pair]) -> dict[str, Any] | None:
    """Named objects of the sample against the true ones; None where there are no labels."""
    suffix = config.truth or BOXES
    labelled: list[tuple[str, set[str]]] = []
    for shard, some in _by_shard(pairs[: config.quality.pictures]).items():
        rows = load_shard(config.work, shard, ["file", "members", "json"]).take(
            [pair.row for pair in some]
        )
        with ByteReader() as reader:
            for pair, row in zip(some, rows.to_pylist(), strict=True):
                names = _true_names(row, suffix, reader)
                if names is not None:
                    labelled.append((pair.text, names))
    if not labelled:
        if config.truth:
            raise CapwrightError(
                f"--truth {config.truth!r} is in no sample: name a field of the samples' json that "
                f"lists the objects of a picture, or a member with boxes such as {BOXES}"
            )
        return None
    names = set().union(*(names for _, names in labelled))
    texts = [text for text, _ in labelled]
    return audit_texts.against_truth(texts, [true for _, true in labelled], names)


def _true_names(row: dict[str, Any], suffix: str, reader: ByteReader) -> set[str] | None:
    """The true names of a sample, None where it has no labels."""
    for member in row["members"] or ():
        if member["suffix"] == suffix:
            return truth_of(reader.read(row["file"], member["offset"], member["size"]))
    try:
        listed = json.loads(row["json"] or "{}").get(suffix)
    except (ValueError, AttributeError):
        return None
    if not isinstance(listed, list):
        return None
    named = [item.get("name", "") if isinstance(item, dict) else item for item in listed]
    return {normal_name(str(name)) for name in named} - {""}


def _extremes(config: AuditConfig, pairs: Sequence[Pair], quality: Quality) -> dict[str, Any]:
    """The pairs that tell least and most, with their pictures as small files."""
    if not quality.pair_bits:
        return {"worst": [], "best": []}
    order = np.argsort(quality.pair_bits, kind="stable")
    shown = min(config.shown, len(order) // 2)
    chosen = {"worst": order[:shown], "best": order[::-1][:shown]}
    return {
        name: [_card(config, pairs[i], quality.pair_bits[i]) for i in rows]
        for name, rows in chosen.items()
    }


def _card(config: AuditConfig, pair: Pair, bits: float) -> dict[str, Any]:
    name = f"{digest([pair.shard, pair.row])}.jpg"
    path = config.work / "audit" / "pictures" / name
    card = {"key": pair.key, "shard": pair.shard, "text": pair.text, "bits": bits, "picture": name}
    if path.exists():
        return card
    row = load_shard(config.work, pair.shard, PLACE_COLUMNS).slice(pair.row, 1)
    try:
        with ByteReader() as reader:
            picture = open_picture(reader.read(*places(row)[0]), max_side=SHOWN_SIDE)
    except (PictureError, OSError):
        return card | {"picture": ""}
    with atomic_path(path) as temporary:
        picture.save(temporary, "JPEG", quality=85)
    return card


def _by_shard(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.shard, []).append(pair)
    return found
