"""Acting on images with everything made ready: buffers, converted arguments, what goes into which.

Between steps of an environment, modules and small tensors take several hundred microseconds a step,
as nothing of them is left in the caches then: as much as a tenth of the step (measured on a Zen 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from rl_bench.layers import Dense, Link
from rl_bench.native import dense

Choice = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


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
        self._chosen = heads.room_for_choice(rows)

    def __call__(
        self, frames: torch.Tensor, noise: torch.Tensor, out: Choice | None = None
    ) -> Choice:
        """The choice lies in `out`, or in memory of its own."""
        assert noise.dtype == torch.float32 and noise.shape == self._noise_shape
        chosen = self._chosen if out is None else out
        assert noise.is_contiguous()
        assert all(t.is_contiguous() and t.shape == self._noise_shape[:1] for t in chosen)
        x = frames
        for chain, out in self._stages:
            x = chain(x, out)
        if self._rectified is not None:
            F.relu_(self._rectified)
        self._choose(self._last(), noise, *chosen)
        return chosen


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
