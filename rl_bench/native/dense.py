"""Dense layers, of which the last ones, policy and value, are one.

For acting, in `dense.cpp`: few rows, and weights that no cache holds from step to step. Packed once
per block of steps, where torch packs them at every call (measured on a Zen 3, between steps of
Procgen, 16 and 32 rows: in 0.6 of the time). For learning, in `dense_learning.cpp`: on one thread
of a Zen 4, 272 rows of the Nature encoder's in 0.8 of torch's time, forward and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from rl_bench.native import library
from rl_bench.native.method import method_of


@dataclass(frozen=True)
class Packed:
    """Weights [O, I] and a bias [O] in panels of outputs, and calls that were made with them.

    `halves` says whether the weights are pairs in bfloat16; outputs are float32 all the same.
    """

    panels: torch.Tensor
    inputs: int
    outputs: int
    halves: bool
    _calls: dict[tuple[int, ...], library.Prepared] = field(default_factory=dict)

    def layer(self, rows: int, *, relu: bool) -> library.Prepared:
        """To be called with x [rows, I] and outputs [rows, O]."""
        key = rows, relu, torch.get_num_threads()
        if key not in self._calls:
            self._calls[key] = library.Prepared(
                "dense", library.ADDRESS, rows, self.inputs, self.outputs, self.halves,
                self.panels, relu, library.ADDRESS, torch.get_num_threads(),
            )  # fmt: skip
        return self._calls[key]

    def choice(self, rows: int) -> library.Prepared:
        """To be called with features [rows, I], Gumbel's noise [rows, A] and `room_for_choice`.

        For a layer that gives A logits and, behind them, the value; without gradients.
        """
        assert not self.halves
        if (rows,) not in self._calls:
            self._calls[rows,] = library.Prepared(
                "act", library.ADDRESS, rows, self.inputs, self.outputs - 1, self.panels,
                *[library.ADDRESS] * 4,
            )  # fmt: skip
        return self._calls[rows,]

    def room_for_choice(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For sampled actions, int64, their log-probabilities and values, [rows] each."""
        new = self.panels.new_empty
        return new(rows, dtype=torch.int64), new(rows), new(rows)


def computes(dtype: torch.dtype) -> bool:
    """Whether there are such layers on this CPU."""
    return method_of(dtype).values == torch.float32


def pack(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> Packed:
    """For inputs of any number of rows, and products in `dtype`."""
    assert weight.dtype == bias.dtype == torch.float32 and computes(dtype)
    outputs, inputs = weight.shape
    halves = method_of(dtype).halves
    weight, bias = weight.detach().contiguous(), bias.detach().contiguous()
    panels = weight.new_empty(library.load().dense_packed_size(inputs, outputs, halves))
    library.call(
        "dense_pack", weight, bias, inputs, outputs, halves, panels, torch.get_num_threads()
    )
    return Packed(panels, inputs, outputs, halves)


def apply(x: torch.Tensor, packed: Packed, *, relu: bool) -> torch.Tensor:
    """x [N, I] → [N, O], float32, without a gradient."""
    assert x.shape[1:] == (packed.inputs,), x.shape
    x = x.float().contiguous()
    out = x.new_empty(len(x), packed.outputs)
    packed.layer(len(x), relu=relu)(x, out)
    return out


INPUTS, OUTPUTS = 32, 16  # what layers to be learned from have a multiple of


class Learning:
    """A layer with weights like these, [O, I], and a ReLU behind it, to be learned from."""

    def __init__(self, like: torch.Tensor, dtype: torch.dtype) -> None:
        assert learns(like, dtype)
        address, number = library.ADDRESS, library.NUMBER
        self._taken: Any = None
        self._outputs, inputs = like.shape
        shape = number, inputs, self._outputs, method_of(dtype).halves
        self._forward = library.Prepared(
            "dense_learn", address, *shape, address, address, True, address, number
        )
        self._backward = library.Prepared(
            "dense_learn_backward", address, *shape, *[address] * 6, number
        )

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Outputs [N, O] of x [N, I], all float32."""
        weight, bias = weight.detach().contiguous(), bias.detach().contiguous()
        out = x.new_empty(len(x), self._outputs)
        self._forward(x, len(x), weight, bias, out, torch.get_num_threads())
        self._taken = x, weight, out
        return out

    def backward(self, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of x, weights and bias."""
        (x, weight, out), self._taken = self._taken, None
        gradient = gradient.contiguous()
        found = torch.empty_like(x), torch.empty_like(weight), weight.new_empty(self._outputs)
        self._backward(x, len(x), weight, out, gradient, *found, torch.get_num_threads())
        return found


def learns(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether such layers can be learned from."""
    outputs, inputs = weight.shape
    return computes(dtype) and inputs % INPUTS == 0 and outputs % OUTPUTS == 0


class PolicyAndValue(torch.autograd.Function):
    """Features [N, F] → normalised log-probabilities [N, A] and values [N], all float32.

    Weights are [A, F] and [1, F], biases [A] and [1]; F is a multiple of `INPUTS`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        policy_weight: torch.Tensor,
        policy_bias: torch.Tensor,
        value_weight: torch.Tensor,
        value_bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features, rows = features.contiguous(), len(features)
        weights = policy_weight.contiguous(), value_weight.contiguous()
        actions, inputs = policy_weight.shape
        policy, values = features.new_empty(rows, actions), features.new_empty(rows)
        library.call(
            "heads_learn", features, rows, inputs, actions, weights[0], policy_bias.contiguous(),
            weights[1], value_bias, policy, values, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(features, *weights, policy)
        return policy, values

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dpolicy: torch.Tensor, dvalues: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        features, policy_weight, value_weight, policy = ctx.saved_tensors
        actions, inputs = policy_weight.shape
        dfeatures, dweight = torch.empty_like(features), features.new_empty(actions + 1, inputs)
        dbias = features.new_empty(actions + 1)
        library.call(
            "heads_learn_backward", features, len(features), inputs, actions, policy_weight,
            value_weight, policy, dpolicy.contiguous(), dvalues.contiguous(), dfeatures, dweight,
            dbias, torch.get_num_threads(),
        )  # fmt: skip
        return dfeatures, dweight[:-1], dbias[:-1], dweight[-1:], dbias[-1:]
