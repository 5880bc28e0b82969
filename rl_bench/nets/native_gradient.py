"""Computes an encoder's features and their gradient by native code, without autograd.

Buffers, converted arguments and the memory of gradients are made once, for up to `capacity` frames.
Between products little of what modules, autograd and small tensors need is left in the caches: with
them a minibatch of 256 frames takes a tenth longer, in which other threads wait (measured on a
Zen 4 with two threads).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from rl_bench.native import convolution, dense
from rl_bench.native.conv_plan import ConvSpec, supports
from rl_bench.native.variant import kernel_variant
from rl_bench.nets.encoders import ConvStep, ImageEncoder
from rl_bench.nets.layers import PixelConv


class EncoderGradient:
    """Frames → features, and the gradient of features → that of the encoder's parameters.

    For up to `capacity` frames like `like`, computing in `dtype`. What it returns lies in memory of
    its own, and is good until the next call.
    """

    def __init__(
        self, encoder: ImageEncoder, like: torch.Tensor, dtype: torch.dtype, capacity: int
    ) -> None:
        variant = kernel_variant(dtype)
        self.capacity = capacity
        self._relu_before_dense, last = encoder.relu_before_dense, encoder.dense
        self.parameters = parameters_of(encoder)
        self._stages: list[convolution.ConvGradient] = []
        for stage in encoder.stages:
            kernels = [step.conv.weight for step in stage]
            gradient = convolution.ConvGradient(
                like, specs_of(stage), kernels, variant, capacity=capacity,
                into_images=bool(self._stages),
            )  # fmt: skip
            self._stages.append(gradient)
            like = gradient.out.rows
        native = dense.supports_gradient(last.weight, dtype)
        self._dense = (dense.DenseGradient if native else TorchDense)(last.weight, dtype, capacity)
        # Of the parameters, in their order; good until the next call.
        self.gradients = [g for stage in self._stages for g in stage.gradients]
        self.gradients += self._dense.gradients

    def forward(self, frames: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
        """Return features [N, F] float32 of the frames, or of those at `indices` [N]."""
        x, first = frames, 0
        for stage in self._stages:
            own = self.parameters[first : first + len(stage.gradients)]
            x = stage.forward(x, own[::2], own[1::2], indices)
            first, indices = first + len(own), None
        self._convolved = x
        self._x = F.relu(x) if self._relu_before_dense else x
        return self._dense.forward(self._x, *self.parameters[-2:])

    def backward(self, dfeatures: torch.Tensor, *, add: bool) -> None:
        """Fill `gradients` by that of the first M features, [M, F], or add to them."""
        dx: torch.Tensor | None
        dx = self._dense.backward(self._x, self.parameters[-2], dfeatures, add=add)
        if self._relu_before_dense:
            convolved = self._convolved[: len(dfeatures)]
            dx = torch.ops.aten.threshold_backward.default(dx.view_as(convolved), convolved, 0.0)
        for stage in reversed(self._stages):
            assert dx is not None, "each stage but the first has a gradient of its input"
            dx = stage.backward(dx, add=add)


class TorchDense:
    """Computes a dense layer and its ReLU with torch, which is as fast where there is AMX."""

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, capacity: int) -> None:
        self._weight = torch.empty_like(like, dtype=dtype, requires_grad=False)
        self.gradients = like.new_zeros(like.shape), like.new_zeros(len(like))

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return outputs [N, O] of x [N, *]."""
        dtype = self._weight.dtype
        self._x, self._weight = x.flatten(1).to(dtype), self._weight.copy_(weight)
        self._out = F.linear(self._x, self._weight, bias.to(dtype)).relu_()
        return self._out.float()

    def backward(
        self, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, *, add: bool
    ) -> torch.Tensor:
        """Return the gradient of the first M rows of x; fill `gradients`, or add to them."""
        dtype = self._weight.dtype
        count = len(gradient)
        out, inputs = self._out[:count], self._x[:count]
        dy = torch.ops.aten.threshold_backward.default(gradient.to(dtype), out, 0.0)
        found = dy.t().mm(inputs), dy.sum(0)
        for mine, one in zip(self.gradients, found, strict=True):
            mine.add_(one) if add else mine.copy_(one)
        return dy.mm(self._weight).to(x.dtype)


def parameters_of(encoder: ImageEncoder) -> list[torch.Tensor]:
    """List kernels and biases, layer by layer."""
    layers: list[Any] = [*(step.conv for stage in encoder.stages for step in stage), encoder.dense]
    return [p for layer in layers for p in (layer.weight, layer.bias)]


def specs_of(stage: Sequence[ConvStep]) -> list[ConvSpec]:
    """Describe a stage to native code."""
    return [
        ConvSpec(
            step.conv.stride[0], int(step.conv.padding[0]), relu=step.relu,
            rectified=step.relu_before, residual=step.residual, pooled=step.pooled,
        )
        for step in stage
    ]  # fmt: skip


def has_native_layers(encoder: ImageEncoder) -> bool:
    """Tell if native code has kernels for all convolutions of an encoder."""
    return all(
        supports(
            channels=step.conv.in_channels,
            out_channels=step.conv.out_channels,
            kernel=step.conv.kernel_size[0],
            stride=step.conv.stride[0],
            padding=int(step.conv.padding[0]),
            first=isinstance(step.conv, PixelConv),
        )
        for stage in encoder.stages
        for step in stage
    )


def as_input(
    frames: torch.Tensor, indices: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Convert frames to what native layers read, with the indices that are left to apply."""
    if frames.dtype != torch.uint8:  # bytes are read as they are, and divided there
        frames = frames if indices is None else frames.index_select(0, indices)
        frames, indices = frames.to(kernel_variant(dtype).dtype), None
    return frames.contiguous(), indices
