"""MUST on dtd: a row of must_sets.py. `capwright adapt must --recipe dtd`."""

from capwright.adapt.must import Config
from capwright.recipes import must_sets


def config() -> Config:
    """The recipe's plan."""
    return must_sets.config_of("dtd")
