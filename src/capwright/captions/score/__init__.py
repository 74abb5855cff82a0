"""How good is a caption for its picture, one file per score. `--with clip` is `clip.py`.

A score owns a config dataclass `ScoreConfig` and `run(config) -> StageSummary`, which reads the
index and the sidecars of earlier stages and writes WORK/captions/score-NAME, one row a candidate.
"""
