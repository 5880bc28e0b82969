"""Evaluates networks: the three verbs `act`, `forward` and `backward`, by torch or by native code.

An executor is chosen once for a run, by `make_executor`. Nobody else asks who computes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch

from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.encoders import ImageEncoder
from rl_bench.nets.layers import PixelConv, can_pack, layers_of


class Executor(Protocol):
    """Evaluates one network: a learner's by `forward` and `backward`, an acting copy's by `act`.

    `is_native` tells that losses and optimisers may use native code too.
    """

    net: ActorCritic
    is_native: bool

    def forward(
        self, obs: torch.Tensor, indices: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return policy parameters [N, P] and values [N], float32 and without autograd.

        Of observations [N, *], or of those at `indices` [N]. What it returns is good until the
        next call.
        """

    def backward(self, dpolicy: torch.Tensor, dvalues: torch.Tensor) -> None:
        """Add the gradient of the last `forward` to that of the parameters.

        `dpolicy` [M, P] and `dvalues` [M] belong to its first M rows; the others have none.
        """

    def act(
        self, obs: torch.Tensor, noise: torch.Tensor, out: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        """Sample actions [N, …] with `noise` [N, A]; return them, log-probabilities and values [N].

        For acting copies, in inference mode. They are written to `out`; without it, what it
        returns is good until the next call.
        """

    def acting_copy(self) -> Executor:
        """Copy the network for inference: weights cast once to the compute dtype, no gradients."""

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take published weights in place, cast to the dtypes of this acting copy."""


def make_executor(net: ActorCritic, kernels: str = "torch") -> Executor:
    """Choose who evaluates a network: `torch`, or `native` code, which has layers for images."""
    assert kernels in ("native", "torch"), kernels
    if kernels == "native" and net.has_image_encoder:
        from rl_bench.nets.native_executor import NativeExecutor
        from rl_bench.nets.native_gradient import has_native_layers

        assert has_native_layers(cast(ImageEncoder, net.encoder)), (
            "native code has no kernels for this encoder"
        )
        return NativeExecutor(net)
    return TorchExecutor(net)


class TorchExecutor:
    """Evaluates a network with torch and its autograd."""

    is_native = False

    def __init__(self, net: ActorCritic) -> None:
        self.net = net
        self._outputs: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(
        self, obs: torch.Tensor, indices: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Whole rows are copied; indexing with [] would go pixel by pixel (4 × slower).
        policy, values = self.net(obs if indices is None else obs.index_select(0, indices))
        if torch.is_grad_enabled():
            self._outputs = policy, values
        return policy.detach(), values.detach()

    def backward(self, dpolicy: torch.Tensor, dvalues: torch.Tensor) -> None:
        assert self._outputs is not None, "forward comes first"
        outputs, self._outputs = self._outputs, None
        scalar_with_gradients(outputs, (dpolicy, dvalues)).backward()

    def act(
        self, obs: torch.Tensor, noise: torch.Tensor, out: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        policy, values = self.forward(obs)
        return choose(self.net, policy, values, noise, out)

    def acting_copy(self) -> TorchExecutor:
        net = freeze(self.net)
        packs = net.dtype == torch.bfloat16 and net.has_image_encoder and can_pack()
        for encoder in (net.encoder, net.value_encoder):
            for layer in layers_of(encoder) if encoder is not None else ():
                layer.packs = packs
                # PixelConv stays: its weights are divided by 255 first, and would be rounded twice.
                if not isinstance(layer, PixelConv):
                    layer.to(net.dtype)
        return TorchExecutor(net)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        copy_weights(self.net, weights)


def scalar_with_gradients(
    outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return a scalar whose gradient is `gradients` for the first rows of `outputs`, else 0.

    Autograd could be given the gradients themselves, but then imports torch's compiler.
    """
    with torch.enable_grad():
        pairs = zip(outputs, gradients, strict=True)
        return torch.stack([(out[: len(grad)] * grad).sum() for out, grad in pairs]).sum()


def freeze(net: ActorCritic) -> ActorCritic:
    """Copy a network for inference."""
    return copy.deepcopy(net).requires_grad_(False).eval()


@torch.no_grad()
def copy_weights(net: ActorCritic, weights: Mapping[str, torch.Tensor]) -> None:
    """Overwrite the weights of an acting copy, cast to its dtypes."""
    for name, tensor in net.state_dict().items():
        tensor.copy_(weights[name])
    for layer in layers_of(net):
        layer.repack()


def choose(
    net: ActorCritic,
    policy: torch.Tensor,
    values: torch.Tensor,
    noise: torch.Tensor,
    out: Sequence[torch.Tensor] | None,
) -> Sequence[torch.Tensor]:
    """Sample actions of a policy [N, P]; return or fill actions, log-probabilities and values."""
    actions = net.distribution.sample(policy, noise)
    choice = actions, net.distribution.log_prob(policy, actions), values
    if out is None:
        return choice
    for place, chosen in zip(out, choice, strict=True):
        place.copy_(chosen)
    return out
