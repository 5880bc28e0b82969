"""Compute dense layers for acting and for learning, and the two heads as one layer.

Acting (`src/dense/inference.cpp`) has few rows and weights that no cache holds from step to step.
They are packed once per block of steps, where torch packs them at every call (measured on a Zen 3,
between steps of Procgen, 16 and 32 rows: in 0.6 of the time). Learning (`src/dense/gradient.cpp`):
on one thread of a Zen 4, 272 rows of the Nature encoder's in 0.8 of torch's time, forward and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from rl_bench.native import library
from rl_bench.native.row_buffer import RowBuffer
from rl_bench.native.variant import kernel_variant


@dataclass(frozen=True)
class PackedDense:
    """Hold weights [O, I] and a bias [O] in panels of outputs, and the calls prepared with them.

    With `bf16_products` the weights are pairs in bfloat16; outputs are float32 in any case.
    """

    panels: torch.Tensor
    inputs: int
    outputs: int
    bf16_products: bool
    _calls: dict[tuple[int, ...], library.PreparedCall] = field(default_factory=dict)

    def dense_call(self, rows: int, *, relu: bool) -> library.PreparedCall:
        """Prepare a call of x [rows, I] and outputs [rows, O], float32, which fills the outputs."""
        key = rows, relu, torch.get_num_threads()
        if key not in self._calls:
            self._calls[key] = library.PreparedCall(
                "dense", library.POINTER, rows, self.inputs, self.outputs, self.bf16_products,
                self.panels, relu, library.POINTER, torch.get_num_threads(),
            )  # fmt: skip
        return self._calls[key]

    def act_call(self, rows: int) -> library.PreparedCall:
        """Prepare a call that samples actions, for a layer of A logits followed by the value.

        Its arguments are features [rows, I], Gumbel noise [rows, A] and the three tensors of
        `new_choice`, which it fills.
        """
        assert not self.bf16_products
        if (rows,) not in self._calls:
            self._calls[rows,] = library.PreparedCall(
                "act", library.POINTER, rows, self.inputs, self.outputs - 1, self.panels,
                *[library.POINTER] * 4,
            )  # fmt: skip
        return self._calls[rows,]

    def new_choice(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return memory for actions, int64, their log-probabilities and values, [rows] each."""
        new = self.panels.new_empty
        return new(rows, dtype=torch.int64), new(rows), new(rows)


def supports_dtype(dtype: torch.dtype) -> bool:
    """Return whether dense layers that compute in `dtype` have kernels here on this CPU."""
    return kernel_variant(dtype).dtype == torch.float32


def pack_dense(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> PackedDense:
    """Pack float32 weights [O, I] and a bias [O] for products in `dtype`, of any number of rows."""
    assert weight.dtype == bias.dtype == torch.float32 and supports_dtype(dtype)
    outputs, inputs = weight.shape
    bf16_products = kernel_variant(dtype).bf16_products
    weight, bias = weight.detach().contiguous(), bias.detach().contiguous()
    panels = weight.new_empty(library.load().dense_packed_size(inputs, outputs, bf16_products))
    library.call(
        "dense_pack", weight, bias, inputs, outputs, bf16_products, panels, torch.get_num_threads()
    )
    return PackedDense(panels, inputs, outputs, bf16_products)


def apply_dense(x: torch.Tensor, packed: PackedDense, *, relu: bool) -> torch.Tensor:
    """Return outputs [N, O], float32, of x [N, I] in any dtype; there is no gradient."""
    assert x.shape[1:] == (packed.inputs,), x.shape
    x = x.float().contiguous()
    out = x.new_empty(len(x), packed.outputs)
    packed.dense_call(len(x), relu=relu)(x, out)
    return out


INPUT_MULTIPLE, OUTPUT_MULTIPLE = 32, 16  # sizes of layers with a gradient are multiples of these


class DenseGradient:
    """Compute a layer like `like`, weights [O, I], with a ReLU behind it, forward and back.

    It serves up to `capacity` rows. Results lie in memory that the object owns; the next call
    overwrites them.
    """

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, capacity: int) -> None:
        assert supports_gradient(like, dtype)
        pointer, integer = library.POINTER, library.INT
        outputs, inputs = like.shape
        self._inputs = inputs
        shape = integer, inputs, outputs, kernel_variant(dtype).bf16_products
        self._out = RowBuffer(torch.empty(capacity, outputs))
        self._dx = RowBuffer(torch.empty(capacity, inputs))
        self.gradients = torch.empty(outputs, inputs), torch.empty(outputs)  # weights, bias
        self._forward = library.PreparedCall(
            "dense_forward", pointer, *shape, pointer, pointer, self._out.rows, integer
        )
        self._backward = library.PreparedCall(
            "dense_backward", pointer, *shape, pointer, self._out.rows, pointer,
            self._dx.rows, *self.gradients, integer, integer,
        )  # fmt: skip

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return outputs [N, O] of x [N, …] with I values in a row; all are float32."""
        rows = x.shape[0]
        assert x.is_contiguous() and weight.is_contiguous() and bias.is_contiguous()
        assert rows <= len(self._out) and x.numel() == rows * self._inputs
        self._forward(x, rows, weight, bias, torch.get_num_threads())
        return self._out.first(rows)

    def backward(
        self, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, *, add: bool
    ) -> torch.Tensor:
        """Return the gradient [M, I] of the first M rows of x; fill `gradients`, or add to them.

        `gradient` [M, O] is that of the outputs which `forward` returned last.
        """
        rows = gradient.shape[0]
        assert gradient.is_contiguous() and gradient.dtype == torch.float32
        assert rows <= x.shape[0] and gradient.shape[1:] == self._out.rows.shape[1:]
        self._backward(x, rows, weight, gradient, add, torch.get_num_threads())
        return self._dx.first(rows)


def supports_gradient(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether `DenseGradient` can compute a layer with such weights [O, I]."""
    outputs, inputs = weight.shape
    whole = inputs % INPUT_MULTIPLE == 0 and outputs % OUTPUT_MULTIPLE == 0
    return supports_dtype(dtype) and whole


class HeadsGradient:
    """Compute policy and value as one layer, forward and back.

    Features [N, F] become log-probabilities [N, A] and values [N], all float32, for up to
    `capacity` rows; F is a multiple of `INPUT_MULTIPLE`. Results lie in memory that the object
    owns; the next call overwrites them.
    """

    def __init__(self, features: int, actions: int, capacity: int) -> None:
        pointer, integer = library.POINTER, library.INT
        shape = integer, features, actions
        self._policy = RowBuffer(torch.empty(capacity, actions))
        self._values = RowBuffer(torch.empty(capacity))
        self._dfeatures = RowBuffer(torch.empty(capacity, features))
        weights, biases = torch.empty(actions + 1, features), torch.empty(actions + 1)
        # The policy's weights and bias, then the value's.
        self.gradients = weights[:-1], biases[:-1], weights[-1:], biases[-1:]
        self._forward = library.PreparedCall(
            "heads_forward", pointer, *shape, *[pointer] * 4, self._policy.rows,
            self._values.rows, integer,
        )  # fmt: skip
        self._backward = library.PreparedCall(
            "heads_backward", pointer, *shape, pointer, pointer, self._policy.rows, pointer,
            pointer, self._dfeatures.rows, weights, biases, integer, integer,
        )  # fmt: skip

    def forward(
        self, features: torch.Tensor, parameters: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities [N, A] and values [N] of features [N, F].

        `parameters` are weights [A, F] and bias [A] of the policy, [1, F] and [1] of the value.
        """
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
        """Return the gradient [M, F] of the first M features; fill `gradients`, or add to them.

        `dpolicy` [M, A] and `dvalues` [M] are the gradients of what `forward` returned last.
        """
        rows = dvalues.shape[0]
        assert rows <= features.shape[0] and dvalues.dim() == 1
        assert dpolicy.shape == (rows, self._policy.rows.shape[1])
        assert all(t.is_contiguous() and t.dtype == torch.float32 for t in (dpolicy, dvalues))
        weight, _, value_weight, _ = parameters
        self._backward(
            features, rows, weight, value_weight, dpolicy, dvalues, add, torch.get_num_threads()
        )
        return self._dfeatures.first(rows)
