"""Image → caption, one file per backend. The name is the module: `--with small` is `small.py`.

A backend owns a config dataclass `DescribeConfig` and `run(config) -> StageSummary`, which reads
the pictures of WORK's index and writes the sidecars WORK/captions/describe-NAME.
"""
