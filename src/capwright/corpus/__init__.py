"""Images and text where they lie → one index, and caption sidecars that join it.

Reads WebDataset tars (never rewritten). Writes WORK/index/SHARD.parquet and
WORK/captions/STAGE/SHARD.parquet. Run: `capwright index CORPUS --work WORK`. A reader for another
input is one more file beside `webdataset.py` that yields the same rows; `index.READERS` names them
by suffix.
"""
