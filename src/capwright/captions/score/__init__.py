"""How good is a caption, one file per score: `clip.py` and `concepts.py` look at its picture,
`text.py` at its words alone.

A score owns a config dataclass `ScoreConfig` and `run(config) -> StageSummary`, which reads the
index and the sidecars of earlier stages and writes WORK/captions/score-NAME, one row a candidate
(`captions/candidates.py`), so that scores join by shard, key, source and text.
"""
