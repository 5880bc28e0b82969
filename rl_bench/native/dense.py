"""Dense layers, of which the last ones, policy and value, are one.

For acting, in `dense.cpp`: few rows, and weights that no cache holds from step to step. Packed once
per block of steps, where torch packs them at every call (measured on a Zen 3, between steps of
Procgen, 16 and 32 rows: in 0.6 of the time). For learning, in `dense_learning.cpp`: on one thread
of a Zen 4, 272 rows of the Nature encoder's in 0.8 of torch's time, forward and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from rl_bench.native import library
from rl_bench.native.method import method_of
from rl_bench.native.room import Room


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
    """A layer with weights like these, [O, I], and a ReLU behind it, to be learned from.

    For up to `room` rows; what it gives lies in memory of its own, and is good until the next time.
    """

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, room: int) -> None:
        assert learns(like, dtype)
        address, number = library.ADDRESS, library.NUMBER
        outputs, inputs = like.shape
        self._inputs = inputs
        shape = number, inputs, outputs, method_of(dtype).halves
        self._out, self._dx = Room(torch.empty(room, outputs)), Room(torch.empty(room, inputs))
        self.gradients = torch.empty(outputs, inputs), torch.empty(outputs)  # weights', bias's
        self._forward = library.Prepared(
            "dense_learn", address, *shape, address, address, self._out.rows, number
        )
        self._backward = library.Prepared(
            "dense_learn_backward", address, *shape, address, self._out.rows, address,
            self._dx.rows, *self.gradients, number, number,
        )  # fmt: skip

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Outputs [N, O] of x [N, *] with I values in a row, all float32."""
        rows = x.shape[0]
        assert x.is_contiguous() and weight.is_contiguous() and bias.is_contiguous()
        assert rows <= len(self._out) and x.numel() == rows * self._inputs
        self._forward(x, rows, weight, bias, torch.get_num_threads())
        return self._out.first(rows)

    def backward(
        self, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, *, add: bool
    ) -> torch.Tensor:
        """The gradient [M, I] of the first M rows of x, whose outputs have one; fills `gradients`,
        or adds to them."""
        rows = gradient.shape[0]
        assert gradient.is_contiguous() and gradient.dtype == torch.float32
        assert rows <= x.shape[0] and gradient.shape[1:] == self._out.rows.shape[1:]
        self._backward(x, rows, weight, gradient, add, torch.get_num_threads())
        return self._dx.first(rows)


def learns(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether such layers can be learned from."""
    outputs, inputs = weight.shape
    return computes(dtype) and inputs % INPUTS == 0 and outputs % OUTPUTS == 0


class LearningHeads:
    """Policy and value as one layer: features [N, F] → log-probabilities [N, A] and values [N].

    All float32, for up to `room` rows; F is a multiple of `INPUTS`. What it gives lies in memory of
    its own, and is good until the next time.
    """

    def __init__(self, features: int, actions: int, room: int) -> None:
        address, number = library.ADDRESS, library.NUMBER
        shape = number, features, actions
        self._policy, self._values = Room(torch.empty(room, actions)), Room(torch.empty(room))
        self._dfeatures = Room(torch.empty(room, features))
        weights, biases = torch.empty(actions + 1, features), torch.empty(actions + 1)
        # Of the policy's weights and bias, and the value's.
        self.gradients = weights[:-1], biases[:-1], weights[-1:], biases[-1:]
        self._forward = library.Prepared(
            "heads_learn", address, *shape, *[address] * 4, self._policy.rows,
            self._values.rows, number,
        )  # fmt: skip
        self._backward = library.Prepared(
            "heads_learn_backward", address, *shape, address, address, self._policy.rows, address,
            address, self._dfeatures.rows, weights, biases, number, number,
        )  # fmt: skip

    def forward(
        self, features: torch.Tensor, parameters: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`parameters`: weights [A, F] and bias [A] of the policy, [1, F] and [1] of the value."""
        assert all(t.is_contiguous() for t in (features, *parameters))
        rows = features.shape[0]
        assert rows <= len(self._values) and features.shape[1:] == self._dfeatures.rows.shape[1:]
        self._forward(features, rows, *parameters, torch.get_num_threads())
        return self._policy.first(rows), self._values.first(rows)

    def backward(
        self,
        features: torch.Tensor,
        parameters: Sequence[torch.Tensor],
        dpolicy: torch.Tensor,
        dvalues: torch.Tensor,
        *,
        add: bool,
    ) -> torch.Tensor:
        """The gradient of the first M features, whose outputs have one, [M, A] and [M]; fills
        `gradients`, or adds to them."""
        rows = dvalues.shape[0]
        assert rows <= features.shape[0] and dvalues.dim() == 1
        assert dpolicy.shape == (rows, self._policy.rows.shape[1])
        assert all(t.is_contiguous() and t.dtype == torch.float32 for t in (dpolicy, dvalues))
        weight, _, value_weight, _ = parameters
        self._backward(
            features, rows, weight, value_weight, dpolicy, dvalues, add, torch.get_num_threads()
        )
        return self._dfeatures.first(rows)
