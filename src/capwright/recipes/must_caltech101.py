"""MUST on caltech101: a row of must_sets.py. `capwright adapt must --recipe caltech101`."""

from capwright.adapt.must import Config
from capwright.recipes import must_sets


def config() -> Config:
    """The recipe's plan."""
    return must_sets.config_of("caltech101")
