"""Clipping by the gradient's norm and Adam's step, in `adam.cpp`: one call for all parameters.

torch takes a kernel for each parameter and purpose; where all of it lies in the caches that is
slower, out of them both wait for memory (perf/kernels.py compares).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from rl_bench.native import library


class Parameter(ctypes.Structure):
    """As in `adam.cpp`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "gradient", "first", "second")),
        ("size", ctypes.c_int64),
    ]


def step(
    values: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    first_moments: Sequence[torch.Tensor],
    second_moments: Sequence[torch.Tensor],
    *,
    max_norm: float,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    steps: int,
) -> float:
    """The step number `steps`, counted from 1; returns the gradient's norm before it is clipped.

    Where that is not finite, nothing is changed. All tensors are float32, those that belong to one
    parameter alike in memory.
    """
    rows = list(zip(values, gradients, first_moments, second_moments, strict=True))
    for row in rows:
        assert all(t.dtype == torch.float32 and t.shape == row[0].shape for t in row)
        strides = {t.stride() for t in row}
        assert len(strides) == 1 or len({_order(t) for t in row}) == 1, strides
    structs = (Parameter * len(rows))(
        *(Parameter(*(t.data_ptr() for t in row), row[0].numel()) for row in rows)
    )
    new_weights = (1.0 - beta for beta in betas)
    corrections = 1.0 / (1.0 - betas[0] ** steps), (1.0 - betas[1] ** steps) ** -0.5
    return library.call(
        "adam", structs, len(rows), *map(float, (max_norm, rate, *new_weights, eps)),
        *corrections, torch.get_num_threads(), returns=ctypes.c_double,
    )  # fmt: skip


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Strides, but for axes of one element, whose strides mean nothing."""
    return tuple(s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
