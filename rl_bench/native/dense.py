"""Dense layers for acting: few rows, and weights that no cache holds from step to step.

Packed once per block of steps, where torch packs them at every call (measured on a Zen 3, between
steps of Procgen, 16 and 32 rows: in 0.6 of the time). The last layers, policy and value, are one
here, with the choice of an action. The work is done in `dense.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

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
