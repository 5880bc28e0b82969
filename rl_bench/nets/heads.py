"""Policies over actions: what a head's parameters mean, how to sample, score and measure them.

Everything here is float32: ratios of probabilities do not survive bfloat16.
"""

from __future__ import annotations

import math

import gymnasium
import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete
from torch import nn

from rl_bench.nets.layers import Dense


class CategoricalHead(nn.Module):
    """A policy over A discrete actions; its parameters are normalised log-probabilities [N, A]."""

    def __init__(self, features: int, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.dense = Dense(features, num_actions)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.dense(features), dim=-1)

    def draw_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Gumbel noise [*shape, A] for a whole rollout at once: one call instead of T."""
        noise = torch.empty((*shape, self.num_actions)).exponential_(generator=generator)
        return -noise.log()

    def sample(self, policy: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Gumbel-max sampling: argmax(log p + Gumbel) is distributed as p. Returns int64 [N]."""
        return (policy + noise).argmax(dim=-1)

    def mode(self, policy: torch.Tensor) -> torch.Tensor:
        return policy.argmax(dim=-1)

    def log_prob(self, policy: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, policy: torch.Tensor) -> torch.Tensor:
        return -(policy.exp() * policy).sum(dim=-1)


class GaussianHead(nn.Module):
    """A diagonal Gaussian over D continuous actions with a state-independent spread.

    Its parameters are means and log standard deviations, [N, 2D]. Samples are not bounded: the
    environment adapter clips them, the log-probability is that of the unclipped action.
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.dense = Dense(features, size)
        self.log_std = nn.Parameter(torch.zeros(size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        means = self.dense(features)
        return torch.cat([means, self.log_std.expand_as(means)], dim=-1)

    def draw_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        return torch.randn((*shape, self.size), generator=generator)

    def sample(self, policy: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        means, log_stds = policy.chunk(2, dim=-1)
        return means + log_stds.exp() * noise

    def mode(self, policy: torch.Tensor) -> torch.Tensor:
        return policy.chunk(2, dim=-1)[0]

    def log_prob(self, policy: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        means, log_stds = policy.chunk(2, dim=-1)
        z = (actions - means) * (-log_stds).exp()
        return (-0.5 * z.square() - log_stds - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def entropy(self, policy: torch.Tensor) -> torch.Tensor:
        log_stds = policy.chunk(2, dim=-1)[1]
        return (log_stds + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1)


def make_head(space: gymnasium.Space, features: int) -> CategoricalHead | GaussianHead:
    """The policy that fits a checked action space."""
    if isinstance(space, Discrete):
        return CategoricalHead(features, int(space.n))
    assert space.shape is not None
    return GaussianHead(features, space.shape[0])
