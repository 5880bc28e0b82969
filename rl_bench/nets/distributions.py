"""Defines distributions over actions: how to sample from their parameters, score and measure them.

Pure functions of tensors, all in float32: ratios of probabilities do not survive bfloat16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import gymnasium
import torch
from gymnasium.spaces import Discrete


class Distribution(Protocol):
    """A family of distributions over actions; `policy` [N, P] holds the parameters of N of them."""

    def draw_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Draw the noise [*shape, A] that `sample` needs: one call for a whole rollout."""

    def sample(self, policy: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Turn noise [N, A] into actions [N, …]."""

    def mode(self, policy: torch.Tensor) -> torch.Tensor:
        """Return the most probable actions [N, …]."""

    def log_prob(self, policy: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Score actions: log-probabilities, or log-densities, [N]."""

    def entropy(self, policy: torch.Tensor) -> torch.Tensor:
        """Measure the entropy [N] in nats."""


@dataclass(frozen=True)
class Categorical:
    """Discrete actions 0 … A − 1; the parameters are normalised log-probabilities [N, A]."""

    num_actions: int

    def draw_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Draw Gumbel noise."""
        noise = torch.empty((*shape, self.num_actions)).exponential_(generator=generator)
        return -noise.log()

    def sample(self, policy: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Sample int64 [N] by the Gumbel-max trick: argmax(log p + Gumbel) is distributed as p."""
        return (policy + noise).argmax(dim=-1)

    def mode(self, policy: torch.Tensor) -> torch.Tensor:
        return policy.argmax(dim=-1)

    def log_prob(self, policy: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, policy: torch.Tensor) -> torch.Tensor:
        return -(policy.exp() * policy).sum(dim=-1)


@dataclass(frozen=True)
class DiagonalGaussian:
    """D independent normal variables; the parameters are means and log deviations, [N, 2D].

    Samples are not bounded: the environment adapter clips them, the log-density is that of the
    unclipped action.
    """

    size: int

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


def distribution_for(space: gymnasium.Space) -> Categorical | DiagonalGaussian:
    """Choose the distribution that fits a checked action space."""
    if isinstance(space, Discrete):
        return Categorical(int(space.n))
    assert space.shape is not None
    return DiagonalGaussian(space.shape[0])
