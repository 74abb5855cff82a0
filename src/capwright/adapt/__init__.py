"""A CLIP turned into something else with few labels or none, one module or folder a paper.

Each has a `Config` and `run(config) -> Summary`; `capwright adapt NAME` runs it.
"""
