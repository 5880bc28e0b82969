"""Acting on images with everything made ready: buffers, converted arguments, what goes into which.

Between steps of an environment, modules and small tensors take several hundred microseconds a step,
as nothing of them is left in the caches then: as much as a tenth of the step (measured on a Zen 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from rl_bench.native import dense
from rl_bench.nets.layers import Dense, Link


class Acting:
    """Frames → actions, log-probabilities and values, as `dense.Packed.choice` gives them.

    For `rows` frames. `stages` are native layers that are packed, as `last` is where it is native
    too; `rectified` says whether a ReLU comes before that. `heads` are policy and value. It is good
    for as long as the weights are, and what lies in memory of its own until its next call.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[Link]],
        last: Dense,
        heads: dense.Packed,
        *,
        rows: int,
        rectified: bool,
    ) -> None:
        chains = [stage[0][0]._packed.acting(rows) for stage in stages]
        self._stages = [(chain, chain.room()) for chain in chains]
        features = self._stages[-1][1].flatten(1)
        self._rectified = features if rectified else None
        self._last = _made_ready(last, features)
        self._noise_shape = rows, heads.outputs - 1
        self._choose = heads.choice(rows)
        self._choice = heads.room_for_choice(rows)

    def __call__(
        self, frames: torch.Tensor, noise: torch.Tensor, out: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        """The choice lies in `out`, or in memory of its own."""
        choice = self._choice if out is None else out
        assert _is_like(noise, torch.float32, self._noise_shape)
        for tensor, own in zip(choice, self._choice, strict=True):
            assert _is_like(tensor, own.dtype, own.shape)
        x = frames
        for chain, room in self._stages:
            x = chain(x, room)
        if self._rectified is not None:
            F.relu_(self._rectified)
        self._choose(self._last(), noise, *choice)
        return choice


def _is_like(tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return tensor.is_contiguous() and tensor.dtype == dtype and tensor.shape == shape


def _made_ready(layer: Dense, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The layer with its ReLU, of what x holds when it is called; in float32."""
    packed = layer._packed
    if not isinstance(packed, dense.Packed):
        return lambda: layer(x, relu=True).float()
    call, out = packed.layer(len(x), relu=True), x.new_empty(len(x), packed.outputs)

    def apply() -> torch.Tensor:
        call(x, out)
        return out

    return apply
