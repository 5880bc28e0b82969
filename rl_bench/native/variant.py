"""Choose the kernels that compute a dtype fastest on this CPU."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

from rl_bench.native import library


@dataclass(frozen=True)
class KernelVariant:
    """Describe one family of kernels.

    `name` is the prefix of its convolution functions in C++. `dtype` is that of images, outputs
    and their gradients. With `bf16_products` the factors of each product are rounded to bfloat16,
    although `dtype` is float32; the sums are float32 in any case.
    """

    name: str
    dtype: torch.dtype
    bf16_products: bool


WINOGRAD_FP32 = KernelVariant("winograd", torch.float32, bf16_products=False)
WINOGRAD_BF16 = KernelVariant("winograd", torch.float32, bf16_products=True)
AMX = KernelVariant("amx", torch.bfloat16, bf16_products=False)


def kernel_variant(dtype: torch.dtype) -> KernelVariant:
    """Return the variant for networks that compute in `dtype`, float32 or bfloat16.

    Winograd's filtering serves float32, and bfloat16 on CPUs without AMX.

    Raises: NativeError where the library cannot be had, if `dtype` is bfloat16.
    """
    if dtype == torch.float32:
        return WINOGRAD_FP32
    assert dtype == torch.bfloat16, dtype
    return AMX if _amx_available(library.load()) else WINOGRAD_BF16


@functools.cache
def _amx_available(_: ctypes.CDLL) -> bool:
    """Return whether the loaded library can use AMX; the answer is kept per library."""
    return bool(library.call("amx_available", returns=ctypes.c_int32))
