"""Samples → better captions: describe, fuse, score and select, each a resumable command.

Reads: the index in WORK/index, the pictures at its byte offsets, the sidecars of earlier stages.
Writes: WORK/captions/STAGE/SHARD.parquet, WORK/features, WORK/models.
Run: `capwright describe CORPUS --work WORK`, then `fuse`, `score` and `select` likewise.
"""
