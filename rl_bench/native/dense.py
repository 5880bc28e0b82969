"""Dense layers for acting, in float32: few rows, and weights that no cache holds from step to step.

Packed once per block of steps, where torch packs them at every call (measured on a Zen 3, between
steps of Procgen, 16 and 32 rows: in 0.6 of the time). The work is done in `dense.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rl_bench.native import library


@dataclass(frozen=True)
class Packed:
    """Weights [O, I] and a bias [O] in panels of outputs."""

    panels: torch.Tensor
    inputs: int
    outputs: int


def pack(weight: torch.Tensor, bias: torch.Tensor) -> Packed:
    """For inputs of any number of rows."""
    assert weight.dtype == bias.dtype == torch.float32
    outputs, inputs = weight.shape
    weight, bias = weight.detach().contiguous(), bias.detach().contiguous()
    panels = weight.new_empty(library.load().dense_packed_size(inputs, outputs))
    library.call("dense_pack", weight, bias, inputs, outputs, panels, torch.get_num_threads())
    return Packed(panels, inputs, outputs)


def apply(x: torch.Tensor, packed: Packed, *, relu: bool) -> torch.Tensor:
    """x [N, I] → [N, O], without a gradient."""
    assert x.dtype == torch.float32 and x.shape[1:] == (packed.inputs,), (x.dtype, x.shape)
    x, out = x.contiguous(), x.new_empty(len(x), packed.outputs)
    library.call(
        "dense", x, len(x), packed.inputs, packed.outputs, packed.panels, relu, out,
        torch.get_num_threads(),
    )  # fmt: skip
    return out
