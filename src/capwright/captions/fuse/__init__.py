"""Alt text + description → one caption, one file per way. `--with rules` is `rules.py`.

A way owns a config dataclass `FuseConfig` and `run(config) -> StageSummary`, which reads the index
and the description's sidecars and writes WORK/captions/fuse-NAME.
"""
