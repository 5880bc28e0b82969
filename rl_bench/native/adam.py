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


class Settings(ctypes.Structure):
    """As in `adam.cpp`."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            "max_norm", "rate", "first_new", "second_new", "eps", "correction", "root_correction",
        )
    ]  # fmt: skip


class Steps:
    """Of parameters `values` and their moments, float32; made ready once, as there are many."""

    def __init__(
        self,
        values: Sequence[torch.Tensor],
        first_moments: Sequence[torch.Tensor],
        second_moments: Sequence[torch.Tensor],
        *,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._values, self._moments = values, (first_moments, second_moments)
        self._gradients: list[torch.Tensor | None] = [None] * len(values)
        self._betas = betas
        for rows in zip(values, *self._moments, strict=True):
            assert all(_alike(rows[0], t) for t in rows)
        self._parameters = (Parameter * len(values))()
        for place, first, second in zip(self._parameters, *self._moments, strict=True):
            place.first, place.second = first.data_ptr(), second.data_ptr()
            place.size = first.numel()
        self._settings = Settings(first_new=1.0 - betas[0], second_new=1.0 - betas[1], eps=eps)
        self._call = library.Prepared(
            "adam", self._parameters, len(values), self._settings, library.NUMBER,
            returns=ctypes.c_double,
        )  # fmt: skip

    def take(
        self, gradients: Sequence[torch.Tensor], *, max_norm: float, rate: float, count: int
    ) -> float:
        """Step number `count`, from 1 on; returns the gradient's norm before it is clipped.

        Where that is not finite, nothing is changed. Gradients lie in memory as parameters do.
        """
        known = self._gradients  # most often the very ones of the step before
        for i, (place, value, gradient) in enumerate(
            zip(self._parameters, self._values, gradients, strict=True)
        ):
            place.values = value.data_ptr()
            if gradient is not known[i]:
                assert _alike(value, gradient), (value.stride(), gradient.stride())
                known[i], place.gradient = gradient, gradient.data_ptr()
        settings = self._settings
        settings.max_norm, settings.rate = max_norm, rate
        settings.correction = 1.0 / (1.0 - self._betas[0] ** count)
        settings.root_correction = (1.0 - self._betas[1] ** count) ** -0.5
        norm: float = self._call(torch.get_num_threads())
        return norm


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """In kind, shape and order in memory; strides of axes of one element mean nothing."""
    if one.dtype != torch.float32 or other.dtype != torch.float32 or one.shape != other.shape:
        return False
    return one.stride() == other.stride() or _order(one) == _order(other)


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
