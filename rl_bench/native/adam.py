"""Clip gradients by their norm and take Adam's step in one call (`src/loss/adam.cpp`).

torch launches several kernels for each parameter. While all parameters fit into the caches that is
slower than one pass over them; beyond the caches both wait for memory (perf/kernels.py compares).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from rl_bench.native import library


class AdamParameter(ctypes.Structure):
    """Mirror the struct in `adam.cpp`: one parameter's arrays and their number of elements."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("values", "gradient", "first_moments", "second_moments")
        ),
        ("size", ctypes.c_int64),
    ]


class AdamSettings(ctypes.Structure):
    """Mirror the struct in `adam.cpp`: the scalars of one step."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            "max_norm", "rate", "one_minus_beta1", "one_minus_beta2", "eps", "bias_correction1",
            "root_bias_correction2",
        )
    ]  # fmt: skip


class NativeAdam:
    """Step parameters in place with Adam.

    `values`, `first_moments` and `second_moments` are float32 tensors, one each per parameter and
    alike in shape and memory order. Their addresses are converted once, as there are many.
    """

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
        for tensors in zip(values, *self._moments, strict=True):
            assert all(_same_layout(tensors[0], t) for t in tensors)
        self._parameters = (AdamParameter * len(values))()
        for parameter, first, second in zip(self._parameters, *self._moments, strict=True):
            parameter.first_moments = first.data_ptr()
            parameter.second_moments = second.data_ptr()
            parameter.size = first.numel()
        self._settings = AdamSettings(
            one_minus_beta1=1.0 - betas[0], one_minus_beta2=1.0 - betas[1], eps=eps
        )
        self._call = library.PreparedCall(
            "adam", self._parameters, len(values), self._settings, library.INT,
            returns=ctypes.c_double,
        )  # fmt: skip

    def step(
        self, gradients: Sequence[torch.Tensor], *, max_norm: float, rate: float, count: int
    ) -> float:
        """Take step number `count`, from 1 on, and return the gradient's norm before clipping.

        `gradients` have the parameters' shapes and memory order; their common norm is clipped to
        `max_norm`. `rate` is the learning rate. Nothing changes where the norm is not finite.
        """
        known = self._gradients  # most often the very tensors of the step before
        for i, (parameter, value, gradient) in enumerate(
            zip(self._parameters, self._values, gradients, strict=True)
        ):
            parameter.values = value.data_ptr()
            if gradient is not known[i]:
                assert _same_layout(value, gradient), (value.stride(), gradient.stride())
                known[i], parameter.gradient = gradient, gradient.data_ptr()
        settings = self._settings
        settings.max_norm, settings.rate = max_norm, rate
        settings.bias_correction1 = 1.0 / (1.0 - self._betas[0] ** count)
        settings.root_bias_correction2 = (1.0 - self._betas[1] ** count) ** -0.5
        norm: float = self._call(torch.get_num_threads())
        return norm


def _same_layout(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether both are float32 with the same shape and the same order in memory."""
    if one.dtype != torch.float32 or other.dtype != torch.float32 or one.shape != other.shape:
        return False
    return one.stride() == other.stride() or _strides(one) == _strides(other)


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the strides of axes with several elements; those of the others mean nothing."""
    return tuple(s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
