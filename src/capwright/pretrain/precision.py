"""The arithmetic of a step: bf16 where the hardware multiplies it, and which attention kernel.

On the processors that have matrix units (Intel AMX) a step of the small model is twice as fast in
bf16 with attention written as plain products: the fused kernel spends most of the step in its
backward pass when there are few tokens. In float32 the fused kernel is the faster one at every
length. Parameters, losses and the optimiser stay in float32.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Inside the block products have the chosen precision and attention its fastest kernel."""
    kind = product_type(precision, device)
    with (
        torch.autocast(device.type, kind, enabled=kind != torch.float32),
        attention_kernel(precision, device),
    ):
        yield


def attention_kernel(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Attention's fastest kernel; where activations are computed twice, also around `backward`."""
    plain = device.type == "cpu" and product_type(precision, device) == torch.bfloat16
    return plain_attention() if plain else nullcontext()


def plain_attention() -> AbstractContextManager[None]:
    """Attention as matrix products, which `FlopCounterMode` counts on a CPU as well."""
    kernel: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return kernel


def product_type(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of products: as asked, or on "auto" bf16 where the hardware has units for it."""
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported())
    return bool(torch.cuda.is_bf16_supported())
