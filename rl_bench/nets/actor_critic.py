"""Defines ActorCritic, the network of every agent: a policy and a value for each observation."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from rl_bench.errors import ConfigError
from rl_bench.nets.distributions import distribution_for
from rl_bench.nets.encoders import IMAGE_ENCODERS, is_image, make_encoder
from rl_bench.nets.heads import make_head
from rl_bench.nets.layers import Dense, layers_of
from rl_bench.nets.normaliser import ObservationNormaliser

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ActorCritic(nn.Module):
    """Maps observations [N, *] to policy parameters [N, P] and values [N].

    Spaces choose the network: image → `nature` or `impala` encoder, shared by policy and value;
    vector → an MLP for each of them; Discrete → categorical policy, Box → diagonal Gaussian.
    Encoders compute in `precision`, heads in float32. `normalise_observations` is for vectors.
    Raises: ConfigError for spaces it has no network for.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        encoder: str = "nature",
        hidden_size: int | None = None,
        precision: str = "fp32",
        normalise_observations: bool = False,
    ) -> None:
        super().__init__()
        check_spaces(observation_space, action_space, encoder)
        self.dtype = DTYPES[precision]
        self.has_image_encoder = is_image(observation_space)
        self.distribution = distribution_for(action_space)
        self.normaliser: ObservationNormaliser | None = None
        if normalise_observations:
            assert not self.has_image_encoder, "images are scaled by their encoders"
            self.normaliser = ObservationNormaliser(observation_space.shape or ())
        self.encoder = make_encoder(observation_space, encoder, hidden_size)
        # On vectors the value's large gradients would swamp a shared two-layer encoder.
        self.value_encoder = (
            None
            if self.has_image_encoder
            else make_encoder(observation_space, encoder, hidden_size)
        )
        features = list(layers_of(self.encoder))[-1].weight.shape[0]
        self.head = make_head(self.distribution, features)
        self.value = Dense(features, 1)
        self._initialise()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate observations: policy parameters [N, P] and values [N], float32."""
        if self.normaliser is not None:
            obs = self.normaliser(obs)
        features = value_features = self.encoder(obs, self.dtype).float()
        if self.value_encoder is not None:
            value_features = self.value_encoder(obs, self.dtype).float()
        return self.head(features), self.value(value_features).squeeze(-1)

    def _initialise(self) -> None:
        """Draw orthogonal weights: gain √2 in encoders, 0.01 for the policy, 0.1 for the value.

        A first value that is nearly 0 everywhere keeps the first updates, in which hardly a reward
        was seen, from following its noise.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.orthogonal_(module.weight, math.sqrt(2))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.orthogonal_(self.head.dense.weight, 0.01)
        nn.init.orthogonal_(self.value.weight, 0.1)


def check_spaces(observations: gymnasium.Space, actions: gymnasium.Space, encoder: str) -> None:
    """Refuse spaces that no network here fits. Raises: ConfigError."""
    if not isinstance(observations, Box) or not np.issubdtype(observations.dtype, np.number):
        raise ConfigError(
            f"observations of the kind {observations} have no network here: Box is supported"
        )
    if is_image(observations):
        side, minimum = min(observations.shape[:2]), IMAGE_ENCODERS[encoder].minimum_side
        if side < minimum:
            raise ConfigError(
                f"frames of {observations.shape[0]} × {observations.shape[1]} pixels are too small "
                f"for the {encoder} encoder: it needs at least {minimum} a side"
            )
    if not isinstance(actions, Discrete) and not (
        isinstance(actions, Box) and len(actions.shape) == 1
    ):
        raise ConfigError(
            f"actions of the kind {actions} have no policy here: "
            "Discrete and one-dimensional Box are supported"
        )
