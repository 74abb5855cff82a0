"""Learning rates that fall from the top block of an encoder to its stem.

The top learns most, since what lies deep is general (Clark et al., ELECTRA, arXiv 2003.10555; BEiT,
arXiv 2106.08254, for vision): a parameter of depth d has rate * decay^(deepest - d). The depth of
the stem is 0, of the first block 1, of what comes after the last block one more than its.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

# the block that a parameter belongs to: vision transformers, ConvNeXt and FastViT; then ResNets
_BLOCKS = (re.compile(r"^(?:.*\.)?(?:res)?blocks\.\d+\."), re.compile(r"^(?:.*\.)?layer\d\.\d+\."))


def layered_parameters(
    visual: nn.Module,
    *,
    learning_rate: float,
    decay: float,
    weight_decay: float,
    stages: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls by `decay` per block from the top.

    Follows the order of the parameters: what comes before the first block belongs to the stem,
    what comes after the last one to the top. Norms and biases get no weight decay. With `stages`
    the blocks of a tower with stages count through all of them; without, each stage begins at its
    first block again (so does dense-probe/v1, whose numbers must not change).
    """
    names = [name for name, _ in visual.named_parameters()]
    blocks = depths(names) if stages else _block_numbers(names)
    top = max(blocks.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in visual.named_parameters():
        groups.setdefault((blocks[name], parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay ** (top - block),
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (block, matrix), parameters in groups.items()
    ]


def depths(names: Sequence[str]) -> dict[str, int]:
    """Name to depth through all stages; what lies between two stages goes with the next block."""
    numbers: dict[str, int] = {}
    seen: dict[str, int] = {}
    for name in names:
        match = next((found for block in _BLOCKS if (found := block.match(name))), None)
        if match:
            numbers[name] = seen.setdefault(match.group(), len(seen) + 1)
        else:
            numbers[name] = len(seen) + 1 if seen else 0
    return numbers


def _block_numbers(names: Sequence[str]) -> dict[str, int]:
    """Name to depth: stem 0, block i is i + 1, everything after the blocks one more."""
    numbers: dict[str, int] = {}
    deepest = -1
    for name in names:
        parts = name.split(".")
        where = next((i for i, part in enumerate(parts) if part in ("blocks", "resblocks")), None)
        if where is not None:
            numbers[name] = int(parts[where + 1]) + 1
            deepest = max(deepest, numbers[name])
        else:
            numbers[name] = 0 if deepest < 0 else deepest + 1
    return numbers
