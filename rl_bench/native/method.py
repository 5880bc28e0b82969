"""In which of the native ways layers compute on this CPU, whatever dtype they are asked for."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

from rl_bench.native import library


@dataclass(frozen=True)
class Method:
    """`values` is the dtype of images, outputs and their gradients; `halves` says whether products
    are taken of bfloat16 all the same, and summed up in float32.
    """

    name: str  # what its functions in C++ begin with
    values: torch.dtype
    halves: bool


FLOATS = Method("winograd", torch.float32, halves=False)
HALVES = Method("winograd", torch.float32, halves=True)
TILES = Method("bf16", torch.bfloat16, halves=False)


def method_of(dtype: torch.dtype) -> Method:
    """In float32, and in bfloat16 without a matrix unit, with Winograd's fewer products."""
    if dtype == torch.float32:
        return FLOATS
    assert dtype == torch.bfloat16, dtype
    return TILES if _has_tiles(library.load()) else HALVES


@functools.cache
def _has_tiles(_: ctypes.CDLL) -> bool:
    return bool(library.call("bf16_has_tiles", returns=ctypes.c_int32))
