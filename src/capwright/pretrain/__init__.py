"""Pictures and captions → a checkpoint that open_clip can load.

Reads WORK/index (and the tars it points to) and caption sidecars. Writes OUT/checkpoints/,
OUT/metrics.jsonl, OUT/manifest.json and OUT/summary.json.
Run: `capwright pretrain RECIPE --set a.b=value`.

One engine (`engine.py`) trains one task (`task.py`: a model and weighted objectives); a new loss is
a new file in `objectives/`, found by its name.
"""
