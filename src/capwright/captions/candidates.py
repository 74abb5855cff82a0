"""The candidates of a picture: every text that may become its caption, each once.

Reads: rows of the index (alt text, further alt texts, captions by people in its json) and the
sidecars of the stages that write captions (describe-*, fuse-*). Writes nothing.

What says the same in the same letters is one candidate, with the source that comes first: people,
alt text, then the stages, the fused captions before the descriptions that they are made of.
Captions of regions are no candidates: they stay a source of their own, which `pretrain` can take.
Every score stage has exactly these rows, so that scores join on (shard, key, source, text).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from capwright.captions.human import human_captions
from capwright.captions.runner import check_complete, stage_folder
from capwright.core.errors import CapwrightError
from capwright.core.files import read_json
from capwright.corpus.sidecars import read_sidecars

ALT, HUMAN = "alt", "human"
PREFIXES = ("fuse", "describe")  # of the stages that write captions


class Candidate(NamedTuple):
    """One text of a picture."""

    source: str
    """Who wrote it: alt, human, or what the stage calls it."""
    text: str
    stage: str
    """The stage whose sidecar holds it, "" for the index."""


def caption_stages(work: Path, chosen: Sequence[str] = (), complete: bool = True) -> dict[str, str]:
    """The stages whose captions are candidates, in order, each with the digest of its plan.

    Those chosen, or else all that are there. Raises CapwrightError where one is missing, or with
    `complete` has not finished every shard.
    """
    folder = work / "captions"
    there = [path.name for path in folder.glob("*") if path.is_dir()]
    found = [name for prefix in PREFIXES for name in sorted(there) if name.split("-")[0] == prefix]
    for stage in chosen:
        if stage not in there:
            raise CapwrightError(
                f"There are no captions of the stage {stage!r} in {folder}: "
                f"run `capwright {stage.split('-')[0]}` first or leave it out of --set stages."
            )
    stages = list(chosen) or found
    for stage in stages if complete else []:
        check_complete(work, stage)
    return {stage: _plan_digest(folder / stage / "manifest.json") for stage in stages}


def candidates(
    work: Path, stages: Iterable[str], table: pa.Table, human_field: str
) -> dict[str, list[Candidate]]:
    """Key → candidates, for rows of one shard of the index; in their order."""
    keys = table["key"].to_pylist()
    found: dict[str, dict[str, Candidate]] = {key: {} for key in keys}
    alts, further = table["text"].to_pylist(), table["more_texts"].to_pylist()
    people = human_captions(table, human_field)
    for key, alt, more, human in zip(keys, alts, further, people, strict=True):
        texts = found[key]
        if human:
            texts[human] = Candidate(HUMAN, human, "")
        for text in (alt, *(more or ())):
            if text and text not in texts:
                texts[text] = Candidate(ALT, text, "")
    if keys:
        shard = table["shard"][0].as_py()
        for stage in stages:
            _add_stage(found, stage, read_sidecars(stage_folder(work, stage), [shard]))
    return {key: list(texts.values()) for key, texts in found.items()}


def _plan_digest(manifest: Path) -> str:
    return str(read_json(manifest).get("digest", "")) if manifest.exists() else ""


def _add_stage(found: dict[str, dict[str, Candidate]], stage: str, rows: pa.Table) -> None:
    whole = rows.filter(
        pc.is_null(rows["box"])
    )  # what is said of a region may not be chosen for all
    columns = (whole[name].to_pylist() for name in ("key", "source", "text", "keep"))
    for key, source, text, keep in zip(*columns, strict=True):
        texts = found.get(key)  # None where a few rows alone are asked for
        if keep and text and texts is not None and text not in texts:
            texts[text] = Candidate(source, text, stage)
