"""Scores every candidate caption of a picture by contrastive similarity, calibrated to 0..1.

Reads: the index (alt text, captions by people), the sidecars of describe and fuse, and pictures or
their feature maps. Writes: WORK/captions/score-clip/SHARD.parquet, one row a candidate
(`candidates.py`), and WORK/models/clip-tower when the embedded tower has to be trained.
Run: `capwright score CORPUS --work WORK --with clip [--model MODEL]`.

Algorithm: the embedded tower (`tower.py`) or any open_clip model (`open_clip_judge.py`), and the
probability that the pair beats a shuffled one (`calibration.py`). Text that is longer than the
model's context is read in windows (`windows.py`).

Columns beside the score: `clip_similarity`, the cosine itself (the mean over the windows), and
`clip_windows`, their number. A picture that cannot be read has the score 0, no similarity, and the
reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from capwright.captions.candidates import candidates, caption_stages
from capwright.captions.runner import (
    Rows,
    Running,
    ShardProgress,
    StageSummary,
    missing_shards,
    preview,
    run_stage,
    stage_folder,
)
from capwright.captions.score.judge import JudgeConfig, make_judge, plan_of, prepare

STAGE = "score-clip"
EXTRA = (pa.field("clip_similarity", pa.float32()), pa.field("clip_windows", pa.int32()))


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(JudgeConfig):
    """What is scored and by whom."""

    stages: tuple[str, ...] = ()
    """Stages whose captions are scored beside the alt text; empty takes those that are there."""


def run(config: ScoreConfig, running: Running | None = None) -> StageSummary:
    """Score every shard that has no scores yet; trains the embedded tower first if need be."""
    running = running or Running()
    stages = caption_stages(config.work, config.stages, complete=running.limit is None)
    folder = stage_folder(config.work, STAGE)
    if missing_shards(config.work, folder):
        prepare(config)
    plan = {**plan_of(config), "stages": stages}
    make = partial(ClipScorer, config, tuple(stages))
    return run_stage(config.work, folder, plan, make, running, EXTRA)


def dry_run(config: ScoreConfig, pictures: int = 10) -> Rows:
    """What the first pictures' candidates would be given; writes no scores."""
    stages = caption_stages(config.work, config.stages, complete=False)
    return preview(config.work, partial(ClipScorer, config, tuple(stages)), pictures)


class ClipScorer:
    """Scores the candidates of a shard."""

    def __init__(self, config: ScoreConfig, stages: Sequence[str]) -> None:
        self.config, self.stages = config, stages
        self.judge = make_judge(config)

    def __call__(self, table: pa.Table, progress: ShardProgress) -> Rows:
        """A row for each candidate."""
        config = self.config
        found = candidates(config.work, self.stages, table, config.human_field)
        texts = [[one.text for one in row] for row in found.values()]
        judged = self.judge.judge_shard(table, texts)
        progress.advance(pictures=len(found), captions=sum(map(len, texts)))
        return [
            {
                "key": key,
                "source": one.source,
                "text": one.text,
                "model": self.judge.name,
                "revision": self.judge.revision,
                "score": said.score,
                "keep": not said.reason,
                "reason": said.reason,
                "clip_similarity": said.similarity,
                "clip_windows": said.windows,
            }
            for (key, row), scores in zip(found.items(), judged, strict=True)
            for one, said in zip(row, scores, strict=True)
        ]
