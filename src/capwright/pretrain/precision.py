"""The arithmetic of a step: bf16 where the hardware multiplies it, and which attention kernel.

On the processors that have matrix units (Intel AMX) a step of the small model is twice as fast in
bf16 with attention written as plain products, while the fused kernel spends most of the step in its
backward pass when there are few tokens. Parameters, losses and the optimiser stay in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["auto", "fp32", "bf16"]


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Inside the block products have the chosen precision and attention its fastest kernel."""
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device)):
        if device.type == "cpu":
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether products are in bf16: as asked, or on "auto" where the hardware has units for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported())
    return bool(torch.cuda.is_bf16_supported())
