"""Scores every candidate caption of a picture by contrastive similarity, calibrated to 0..1.

Reads: the index (alt text, captions by people) and the sidecars of describe and fuse. Writes:
WORK/captions/score-clip/SHARD.parquet, one row a candidate (`source` alt, human, describe-small,
fuse-rules), and WORK/models/clip-tower when the embedded tower has to be trained.
Run: `capwright score CORPUS --work WORK --with clip [--model MODEL]`.

Algorithm: the embedded tower (`tower.py`) or any open_clip model, and the probability that
the pair beats a shuffled one (`calibration.py`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from capwright.captions.human import human_captions
from capwright.captions.runner import StageSummary, run_stage, stage_folder
from capwright.captions.score.tower import TowerConfig
from capwright.core.config import as_dict
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index, shard_names
from capwright.corpus.sidecars import read_sidecars

STAGE = "score-clip"
CAPTION_STAGES = ("describe-small", "fuse-rules")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What is scored and by whom."""

    work: Path
    """The work folder, which holds the index and the captions."""
    model: str = ""
    """An open_clip checkpoint folder or MODEL/TAG; empty trains the embedded tower."""
    stages: tuple[str, ...] = ()
    """Stages whose captions are scored beside the alt text; empty takes those that are there."""
    human_field: str = "human_caption"
    """Field of a sample's .json that holds a caption by a person."""
    picture_size: int = 128
    """Side in pixels at which the embedded trunk sees pictures; a multiple of 32."""
    seed: int = 0
    """Draws the reference pictures of an open_clip model's calibration."""
    tower: TowerConfig = field(default_factory=TowerConfig)


def run(config: ScoreConfig) -> StageSummary:
    """Score every shard that has no scores yet; trains the embedded tower first if need be."""
    index = load_index(config.work)
    folder = stage_folder(config.work, STAGE)
    stages = config.stages or tuple(
        stage for stage in CAPTION_STAGES if stage_folder(config.work, stage).is_dir()
    )
    for stage in stages:
        _complete(config.work, stage, index)
    plan = {**as_dict(config), "stages": list(stages)}
    del plan["work"]
    judges: list[Any] = []

    def score_shard(table: pa.Table) -> list[dict[str, Any]]:
        if not judges:
            judges.append(_judge(config, index))
        keys = table["key"].to_pylist()
        candidates = _candidates(config, stages, table)
        texts = [[text for _, text in candidates[key]] for key in keys]
        scores = judges[0].score_shard(table, texts)
        return [
            {"key": k, "source": source, "text": text, "model": judges[0].name, "score": score}
            for k, row in zip(keys, scores, strict=True)
            for (source, text), score in zip(candidates[k], row, strict=True)
        ]

    return run_stage(index, folder, plan, score_shard)


def _judge(config: ScoreConfig, index: pa.Table) -> Any:
    from capwright.captions.score.judge import OpenClipJudge, embedded_judge

    if config.model:
        return OpenClipJudge(config.model, index, config.seed)
    human = human_captions(index, config.human_field)
    return embedded_judge(config.work, index, human, config.tower, config.picture_size)


def _candidates(
    config: ScoreConfig, stages: tuple[str, ...], table: pa.Table
) -> dict[str, list[tuple[str, str]]]:
    """Key → (source, text), without empty and repeated texts."""
    shard = table["shard"][0].as_py()
    found: dict[str, list[tuple[str, str]]] = {key: [] for key in table["key"].to_pylist()}

    def add(key: str, source: str, text: str) -> None:
        if text and all(text != other for _, other in found[key]):
            found[key].append((source, text))

    human = human_captions(table, config.human_field)
    for key, alt, caption in zip(found, table["text"].to_pylist(), human, strict=True):
        add(key, "human", caption)
        add(key, "alt", alt)
    for stage in reversed(stages):
        rows = read_sidecars(stage_folder(config.work, stage), [shard]).to_pylist()
        for row in rows:
            if row["keep"]:
                add(row["key"], stage, row["text"])
    return found


def _complete(work: Path, stage: str, index: pa.Table) -> None:
    if not stage_folder(work, stage).is_dir():
        raise CapwrightError(
            f"There are no captions of the stage {stage!r} in {work / 'captions'}: "
            f"run `capwright {stage.split('-')[0]}` first or leave it out of --set stages."
        )
    read_sidecars(stage_folder(work, stage), shard_names(index))
