"""Evaluates networks of images by native code: the only door to `rl_bench.native` for networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from rl_bench.native import dense
from rl_bench.native.variant import kernel_variant
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.distributions import Categorical
from rl_bench.nets.encoders import ImageEncoder
from rl_bench.nets.executor import choose, copy_weights, freeze, scalar_with_gradients
from rl_bench.nets.layers import can_pack
from rl_bench.nets.native_gradient import EncoderGradient, as_input
from rl_bench.nets.native_inference import InferenceSession


class NativeExecutor:
    """Evaluates a learner's network.

    Encoders are native. Policy and value are one native layer where actions are discrete, and
    torch's with its autograd elsewhere.
    """

    is_native = True

    def __init__(self, net: ActorCritic) -> None:
        self.net = net
        self._encoder = cast(ImageEncoder, net.encoder)
        self._gradient: EncoderGradient | None = None
        self._heads: NativeHeads | TorchHeads
        self._for: tuple[torch.Size, torch.dtype] | None = None  # frames that these are made for

    @torch.no_grad()
    def forward(
        self, obs: torch.Tensor, indices: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        frames, indices = as_input(obs, indices, self.net.dtype)
        rows = len(frames if indices is None else indices)
        self._features = self._gradient_for(frames, rows).forward(frames, indices)
        return self._heads.forward(self._features)

    def _gradient_for(self, frames: torch.Tensor, rows: int) -> EncoderGradient:
        """Keep what was made for frames of this kind and as many rows, or make it anew."""
        wanted = frames.shape[1:], frames.dtype
        if self._gradient is None or self._for != wanted or self._gradient.capacity < rows:
            self._gradient = None  # its memory first
            self._gradient = EncoderGradient(self._encoder, frames, self.net.dtype, rows)
            self._heads = make_heads(self.net, rows)
            self._for = wanted
        return self._gradient

    @torch.no_grad()
    def backward(self, dpolicy: torch.Tensor, dvalues: torch.Tensor) -> None:
        """Add the gradient to that of the parameters, which get the memory here for it.

        Always in the same way, whatever was there before: a sum's rounding must not depend on it.
        """
        encoder, heads = self._gradient, self._heads
        assert encoder is not None, "forward comes first"
        parameters = [*encoder.parameters, *heads.parameters]
        gradients = [*encoder.gradients, *heads.gradients]
        add = any(parameter.grad is not None for parameter in parameters)
        for parameter, mine in zip(parameters, gradients, strict=True):
            if add and parameter.grad is not mine:
                mine.zero_() if parameter.grad is None else mine.copy_(parameter.grad)
            parameter.grad = mine
        encoder.backward(heads.backward(self._features, dpolicy, dvalues, add=add), add=add)

    def act(
        self, obs: torch.Tensor, noise: torch.Tensor, out: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        raise AssertionError("a learner's weights change at any time: only acting copies act")

    def acting_copy(self) -> NativeActing:
        net = freeze(self.net)
        if not dense.supports_dtype(net.dtype):  # then it is torch's, in the dtype of AMX
            net.encoder.dense.to(net.dtype)
            net.encoder.dense.packs = can_pack()  # type: ignore[union-attr]
        return NativeActing(net)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        raise AssertionError("a learner's weights change by its optimiser")


class NativeActing:
    """Evaluates an acting copy, whose weights change by `load_weights` only."""

    is_native = True

    def __init__(self, net: ActorCritic) -> None:
        self.net = net
        self._session: tuple[tuple[torch.Size, torch.dtype], InferenceSession] | None = None

    def _session_for(self, frames: torch.Tensor) -> InferenceSession:
        wanted = frames.shape[1:], frames.dtype
        if self._session is None or self._session[0] != wanted:
            self._session = wanted, InferenceSession(self.net, frames)
        return self._session[1]

    def forward(
        self, obs: torch.Tensor, indices: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        obs = obs if indices is None else obs.index_select(0, indices)
        frames, _ = as_input(obs, None, self.net.dtype)
        return self._session_for(frames).outputs(frames)

    def backward(self, dpolicy: torch.Tensor, dvalues: torch.Tensor) -> None:
        raise AssertionError("acting copies have no gradients")

    def act(
        self, obs: torch.Tensor, noise: torch.Tensor, out: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        if not isinstance(self.net.distribution, Categorical):
            return choose(self.net, *self.forward(obs), noise, out)
        # Bytes are read as they are; no copy is made of contiguous floats either.
        frames = obs if obs.dtype == torch.uint8 else obs.to(kernel_variant(self.net.dtype).dtype)
        return self._session_for(frames).act(frames, noise, out)

    def acting_copy(self) -> NativeActing:
        return NativeActing(freeze(self.net))

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        copy_weights(self.net, weights)
        self._session = None


class NativeHeads:
    """Computes policy over discrete actions and value as one native layer."""

    def __init__(self, net: ActorCritic, capacity: int) -> None:
        policy, value = net.head.dense, net.value
        self.parameters = policy.weight, policy.bias, value.weight, value.bias
        actions, features = policy.weight.shape
        self._layer = dense.HeadsGradient(features, actions, capacity)
        self.gradients = self._layer.gradients

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities [N, A] and values [N]; good until the next call."""
        return self._layer.forward(features, self.parameters)

    def backward(
        self, features: torch.Tensor, dpolicy: torch.Tensor, dvalues: torch.Tensor, *, add: bool
    ) -> torch.Tensor:
        """Return the gradient of the first M features; fill `gradients`, or add to them."""
        return self._layer.backward(features, self.parameters, dpolicy, dvalues, add=add)


class TorchHeads:
    """Computes policy and value by torch, on features that come from elsewhere."""

    def __init__(self, net: ActorCritic) -> None:
        self._net = net
        self.parameters = [*net.head.parameters(), *net.value.parameters()]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return policy parameters [N, P] and values [N]."""
        with torch.enable_grad():
            self._leaf = features.detach().clone().requires_grad_()
            self._outputs = self._net.head(self._leaf), self._net.value(self._leaf).squeeze(-1)
        policy, values = self._outputs
        return policy.detach(), values.detach()

    def backward(
        self, features: torch.Tensor, dpolicy: torch.Tensor, dvalues: torch.Tensor, *, add: bool
    ) -> torch.Tensor:
        """Return the gradient of the first M features; fill `gradients`, or add to them."""
        scalar = scalar_with_gradients(self._outputs, (dpolicy, dvalues))
        dfeatures, *found = torch.autograd.grad(scalar, [self._leaf, *self.parameters])
        for mine, one in zip(self.gradients, found, strict=True):
            mine.add_(one) if add else mine.copy_(one)
        return dfeatures[: len(dvalues)].contiguous()


def make_heads(net: ActorCritic, capacity: int) -> NativeHeads | TorchHeads:
    """Take native heads where actions are discrete and features fill whole vectors."""
    whole = net.value.weight.shape[1] % dense.INPUT_MULTIPLE == 0
    if isinstance(net.distribution, Categorical) and whole:
        return NativeHeads(net, capacity)
    return TorchHeads(net)
