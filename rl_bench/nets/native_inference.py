"""Evaluates an acting network by native code: weights packed once, calls prepared once.

Between steps of an environment, modules and small tensors take several hundred microseconds a step,
as nothing of them is left in the caches then: as much as a tenth of the step (measured on a Zen 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F

from rl_bench.native import convolution, dense
from rl_bench.native.variant import kernel_variant
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.encoders import ImageEncoder
from rl_bench.nets.native_gradient import specs_of


class InferenceSession:
    """Evaluates frames like `like` with the weights that the network has now.

    It is good for as long as those are. The dense layer is torch's, packed by itself, where native
    code has none for this dtype.
    """

    def __init__(self, net: ActorCritic, like: torch.Tensor) -> None:
        self._net, self._encoder = net, cast(ImageEncoder, net.encoder)
        variant = kernel_variant(net.dtype)
        self._stages: list[convolution.PackedConvs] = []
        images = like
        for stage in self._encoder.stages:
            convs = [step.conv for step in stage]
            kernels, biases = (
                [c.weight for c in convs],
                [c.bias for c in convs if c.bias is not None],
            )
            packed = convolution.pack_convs(images, specs_of(stage), kernels, biases, variant)
            self._stages.append(packed)
            images = images.new_empty((1, *packed.plans[-1].size()), dtype=variant.dtype)
        self._dense: dense.PackedDense | None = None
        if dense.supports_dtype(net.dtype):
            last = self._encoder.dense
            self._dense = dense.pack_dense(last.weight, last.bias, net.dtype)
        heads = net.head.dense, net.value
        weight, bias = (torch.cat([getattr(h, n) for h in heads]) for n in ("weight", "bias"))
        self._heads = dense.pack_dense(
            weight, bias, torch.float32
        )  # logits, and behind them the value
        self._acting: tuple[tuple[int, int], _PreparedAct] | None = None

    def outputs(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return policy parameters [N, P] and values [N] of contiguous frames [N, H, W, C]."""
        found = dense.apply_dense(self._features(frames), self._heads, relu=False)
        return self._net.head.activate(found[:, :-1]), found[:, -1]

    def _features(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames
        for packed in self._stages:
            x = convolution.convolve(x, packed)
        x = x.flatten(1)
        x = F.relu(x) if self._encoder.relu_before_dense else x
        if self._dense is not None:
            return dense.apply_dense(x, self._dense, relu=True)
        return self._encoder.dense(x.to(self._net.dtype), relu=True).float()

    def act(
        self, frames: torch.Tensor, noise: torch.Tensor, out: Sequence[torch.Tensor] | None
    ) -> Sequence[torch.Tensor]:
        """Choose discrete actions, as `Executor.act` does."""
        key = len(frames), torch.get_num_threads()
        if self._acting is None or self._acting[0] != key:
            self._acting = key, self._prepare_act(len(frames))
        return self._acting[1](frames, noise, out)

    def _prepare_act(self, rows: int) -> _PreparedAct:
        chains = [packed.inference(rows) for packed in self._stages]
        stages = [(chain, chain.new_output()) for chain in chains]
        features = stages[-1][1].flatten(1)
        return _PreparedAct(
            stages, self._prepare_dense(features), self._heads, rows,
            relu=features if self._encoder.relu_before_dense else None,
        )  # fmt: skip

    def _prepare_dense(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Prepare the dense layer and its ReLU, of what x holds when it is called; in float32."""
        packed, net = self._dense, self._net
        if packed is None:
            return lambda: self._encoder.dense(x.to(net.dtype), relu=True).float()
        call, out = packed.dense_call(len(x), relu=True), x.new_empty(len(x), packed.outputs)

        def apply() -> torch.Tensor:
            call(x, out)
            return out

        return apply


class _PreparedAct:
    """Chooses actions for one number of frames; every buffer and argument is made beforehand."""

    def __init__(
        self,
        stages: Sequence[tuple[Any, torch.Tensor]],
        apply_dense: Callable[[], torch.Tensor],
        heads: dense.PackedDense,
        rows: int,
        *,
        relu: torch.Tensor | None,
    ) -> None:
        self._stages, self._dense, self._relu = stages, apply_dense, relu
        self._noise_shape = rows, heads.outputs - 1
        self._choose = heads.act_call(rows)
        self._choice = heads.new_choice(rows)

    def __call__(
        self, frames: torch.Tensor, noise: torch.Tensor, out: Sequence[torch.Tensor] | None
    ) -> Sequence[torch.Tensor]:
        choice = self._choice if out is None else out
        assert _is_like(noise, torch.float32, self._noise_shape)
        for tensor, own in zip(choice, self._choice, strict=True):
            assert _is_like(tensor, own.dtype, own.shape)
        x = frames
        for stage, buffer in self._stages:
            x = stage(x, buffer)
        if self._relu is not None:
            F.relu_(self._relu)
        self._choose(self._dense(), noise, *choice)
        return choice


def _is_like(tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return tensor.is_contiguous() and tensor.dtype == dtype and tensor.shape == shape
