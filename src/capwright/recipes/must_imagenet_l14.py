"""MUST on imagenet_l14: a row of must_sets.py. `capwright adapt must --recipe imagenet_l14`."""

from capwright.adapt.must import Config
from capwright.recipes import must_sets


def config() -> Config:
    """The recipe's plan."""
    return must_sets.config_of("imagenet_l14")
