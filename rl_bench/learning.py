"""Learning from images with everything made ready: an encoder's features, and their gradient.

Modules, small tensors and a step of autograd for each layer take as long as a tenth of a minibatch
of 256 frames, during which other threads wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from rl_bench.layers import Dense, Link, kinds_of, parameters_of
from rl_bench.native import convolution, dense
from rl_bench.native.method import method_of


class Learning:
    """Native `stages` and a dense layer, with room for up to `room` frames like `like`.

    Computed in `dtype`; `rectified` says whether a ReLU comes before the dense layer. The gradient
    is that of the frames that went through last.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[Link]],
        last: Dense,
        like: torch.Tensor,
        *,
        rectified: bool,
        dtype: torch.dtype,
        room: int,
    ) -> None:
        method = method_of(dtype)
        self.room = room
        self._stages: list[convolution.Learning] = []
        for stage in stages:
            kernels = [conv.weight for conv, _ in stage]
            learning = convolution.Learning(
                like, kinds_of(stage), kernels, method, room=room, into_images=bool(self._stages)
            )
            self._stages.append(learning)
            like = learning.out
        self._rectified = rectified
        learns = dense.learns(last.weight, dtype)
        self._last = dense.Learning(last.weight, dtype) if learns else _Last(last.weight, dtype)

    def forward(
        self, frames: torch.Tensor, chosen: torch.Tensor | None, parameters: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Features [N, F] of the frames, or of those at the indices `chosen`.

        `parameters` are weights and biases, layer by layer.
        """
        x, (*of_stages, weight, bias) = frames, parameters
        for stage in self._stages:
            count = len(stage.gradients)
            mine, of_stages = of_stages[:count], of_stages[count:]
            x = stage.forward(x, mine[::2], mine[1::2], chosen)
            chosen = None
        self._passed = x
        x = F.relu(x) if self._rectified else x
        return self._last.forward(x.flatten(1), weight, bias)

    def backward(self, gradient: torch.Tensor) -> Iterator[torch.Tensor]:
        """The gradients of parameters, of that of the features."""
        flat, *of_last = self._last.backward(gradient)
        dx: torch.Tensor | None = flat.view_as(self._passed)
        if self._rectified:
            dx = torch.ops.aten.threshold_backward.default(dx, self._passed, 0.0)
        for stage in reversed(self._stages):
            assert dx is not None, "each stage but the first has a gradient of what it took"
            dx = stage.backward(dx)
        for stage in self._stages:
            yield from (g.clone() for g in stage.gradients)
        yield from of_last


class _Last:
    """The dense layer with its ReLU as torch computes it, as fast where there is a matrix unit."""

    def __init__(self, like: torch.Tensor, dtype: torch.dtype) -> None:
        self._weight = torch.empty_like(like, dtype=dtype)

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        self._dtype, dtype = x.dtype, self._weight.dtype
        self._x, self._weight = x.to(dtype), self._weight.copy_(weight)
        self._out = F.linear(self._x, self._weight, bias.to(dtype)).relu_()
        return self._out.float()

    def backward(self, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype = self._weight.dtype
        dy = torch.ops.aten.threshold_backward.default(gradient.to(dtype), self._out, 0.0)
        dx, dweight = dy.mm(self._weight), dy.t().mm(self._x)
        return dx.to(self._dtype), dweight.float(), dy.sum(0).float()


class Kept:
    """What was made ready, from one gradient to the next. Copies of an encoder begin without."""

    def __init__(self) -> None:
        self.learning: Learning | None = None
        self._kind: Any = None

    def __reduce__(self) -> Any:
        return Kept, ()

    def features(
        self,
        stages: Sequence[Sequence[Link]],
        last: Dense,
        frames: torch.Tensor,
        chosen: torch.Tensor | None,
        *,
        rectified: bool,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Features of frames [N, H, W, C], or of those at the indices `chosen`, [N, F] float32."""
        if frames.dtype != torch.uint8:  # bytes are taken as they are, and divided there
            frames = frames if chosen is None else frames.index_select(0, chosen)
            frames, chosen = frames.to(method_of(dtype).values), None
        count = len(frames if chosen is None else chosen)
        kind = frames.shape[1:], frames.dtype, dtype
        learning, self.learning = self.learning, None  # another forward pass must not disturb it
        if learning is None or self._kind != kind or learning.room < count:
            learning = Learning(stages, last, frames, rectified=rectified, dtype=dtype, room=count)
            self._kind = kind
        parameters = [p for stage in stages for p in parameters_of(stage)]
        parameters += last.weight, last.bias
        return Features.apply(frames.contiguous(), chosen, self, learning, *parameters)


class Features(torch.autograd.Function):
    """As of `Learning`, which is given back with the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        frames: torch.Tensor,
        chosen: torch.Tensor | None,
        kept: Kept,
        learning: Learning,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        ctx.kept, ctx.learning = kept, learning
        return learning.forward(frames, chosen, parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = (*ctx.learning.backward(gradient),)
        ctx.kept.learning = ctx.learning
        return None, None, None, None, *found
