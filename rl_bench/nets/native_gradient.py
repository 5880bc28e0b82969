"""Learning from images with everything made ready: outputs of a network, and their gradient.

Between products, little of what modules, autograd and small tensors need is left in the caches:
with them a minibatch of 256 frames takes a tenth longer, in which other threads wait (measured on a
Zen 4 with two threads).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from rl_bench.native import convolution, dense
from rl_bench.native.method import method_of
from rl_bench.nets.layers import Dense, Link, kinds_of, parameters_of


class Learning:
    """Frames → features, and a gradient of these → those of the parameters.

    Of native `stages` and a dense layer, for up to `room` frames like `like`. Computed in `dtype`;
    `rectified` says whether a ReLU comes before the dense layer. What it gives lies in memory of
    its own, and is good until the next time.
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
        of_stages = (p for stage in stages for p in parameters_of(stage))
        self.parameters = [*of_stages, last.weight, last.bias]
        self._stages: list[convolution.Learning] = []
        for stage in stages:
            kernels = [conv.weight for conv, _ in stage]
            learning = convolution.Learning(
                like, kinds_of(stage), kernels, method, room=room, into_images=bool(self._stages)
            )
            self._stages.append(learning)
            like = learning.out.rows
        self._rectified = rectified
        learns = dense.learns(last.weight, dtype)
        self._last = (dense.Learning if learns else _Last)(last.weight, dtype, room)
        # Of the parameters, in their order; good until the next time.
        self.gradients = [g for stage in self._stages for g in stage.gradients]
        self.gradients += self._last.gradients

    def forward(self, frames: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
        """Features [N, F] float32 of the frames, or of those at the indices `chosen`."""
        x, first = frames, 0
        for stage in self._stages:
            mine = self.parameters[first : first + len(stage.gradients)]
            x = stage.forward(x, mine[::2], mine[1::2], chosen)
            first, chosen = first + len(mine), None
        self._passed = x
        self._x = F.relu(x) if self._rectified else x
        return self._last.forward(self._x, *self.parameters[-2:])

    def backward(self, gradient: torch.Tensor, *, add: bool) -> None:
        """Fill `gradients` by that of the first M features, [M, F], or add to them."""
        dx: torch.Tensor | None
        dx = self._last.backward(self._x, self.parameters[-2], gradient, add=add)
        if self._rectified:
            passed = self._passed[: len(gradient)]
            dx = torch.ops.aten.threshold_backward.default(dx.view_as(passed), passed, 0.0)
        for stage in reversed(self._stages):
            assert dx is not None, "each stage but the first has a gradient of what it took"
            dx = stage.backward(dx, add=add)


class _Last:
    """The dense layer with its ReLU as torch computes it, as fast where there is a matrix unit."""

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, room: int) -> None:
        self._weight = torch.empty_like(like, dtype=dtype, requires_grad=False)
        self.gradients = like.new_zeros(like.shape), like.new_zeros(len(like))

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        dtype = self._weight.dtype
        self._x, self._weight = x.flatten(1).to(dtype), self._weight.copy_(weight)
        self._out = F.linear(self._x, self._weight, bias.to(dtype)).relu_()
        return self._out.float()

    def backward(
        self, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, *, add: bool
    ) -> torch.Tensor:
        dtype = self._weight.dtype
        count = len(gradient)
        out, taken = self._out[:count], self._x[:count]
        dy = torch.ops.aten.threshold_backward.default(gradient.to(dtype), out, 0.0)
        found = dy.t().mm(taken), dy.sum(0)
        for mine, one in zip(self.gradients, found, strict=True):
            mine.add_(one) if add else mine.copy_(one)
        return dy.mm(self._weight).to(x.dtype)


class LearningOutputs:
    """Frames → policy over discrete actions and values, and their gradient → parameters'."""

    def __init__(self, encoder: Learning, policy: Dense, value: Dense) -> None:
        self.encoder = encoder
        parameters = policy.weight, policy.bias, value.weight, value.bias
        self._of_heads = parameters
        actions, features = policy.weight.shape
        self._heads = dense.LearningHeads(features, actions, encoder.room)
        self._parameters = *encoder.parameters, *parameters
        self._gradients = *encoder.gradients, *self._heads.gradients

    @property
    def room(self) -> int:
        return self.encoder.room

    @torch.no_grad()
    def forward(
        self, frames: torch.Tensor, chosen: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [N, A] and values [N]; good until the next time."""
        self._features = self.encoder.forward(frames, chosen)
        return self._heads.forward(self._features, self._of_heads)

    @torch.no_grad()
    def backward(self, dpolicy: torch.Tensor, dvalues: torch.Tensor) -> None:
        """Add the gradient to those of the parameters, which get the memory here for it.

        It is that of the first M outputs, [M, A] and [M]. Always in the same way, whatever was
        there before: a sum's rounding must not depend on it.
        """
        add = any(parameter.grad is not None for parameter in self._parameters)
        for parameter, mine in zip(self._parameters, self._gradients, strict=True):
            if add and parameter.grad is not mine:
                mine.zero_() if parameter.grad is None else mine.copy_(parameter.grad)
            parameter.grad = mine
        gradient = self._heads.backward(self._features, self._of_heads, dpolicy, dvalues, add=add)
        self.encoder.backward(gradient, add=add)


class Kept:
    """What was made ready, from one gradient to the next. Copies of a network begin without."""

    def __init__(self) -> None:
        self.ready: Any = None
        self._kind: Any = None

    def __reduce__(self) -> Any:
        return Kept, ()

    def get(self, kind: Any, rows: int, make: Callable[[], Any]) -> Any:
        """What is for this kind of frames, and for so many or more; made where it is not there."""
        if self.ready is None or self._kind != kind or self.ready.room < rows:
            self.ready = None  # its memory first
            self.ready, self._kind = make(), kind
        return self.ready

    def take(self, kind: Any, rows: int, make: Callable[[], Any]) -> Any:
        """The same, not to be had again before it is given back."""
        ready, self.ready = self.get(kind, rows, make), None
        return ready

    def give_back(self, ready: Any) -> None:
        self.ready = ready


def as_taken(
    frames: torch.Tensor, chosen: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Frames as layers take them, and which of them, if not all."""
    if frames.dtype != torch.uint8:  # bytes are taken as they are, and divided there
        frames = frames if chosen is None else frames.index_select(0, chosen)
        frames, chosen = frames.to(method_of(dtype).values), None
    return frames.contiguous(), chosen


class Features(torch.autograd.Function):
    """Those of `Learning`, for whatever comes behind them.

    It is taken until the gradient is there: another forward pass meanwhile must not disturb it.
    """

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
        return learning.forward(frames, chosen).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        learning, ctx.learning = ctx.learning, None
        learning.backward(gradient.contiguous(), add=False)
        found = [g.clone() for g in learning.gradients]
        ctx.kept.give_back(learning)
        return None, None, None, None, *found
