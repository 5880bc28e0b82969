"""Defines policy heads: features → parameters of a distribution over actions, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rl_bench.nets.distributions import Categorical, DiagonalGaussian
from rl_bench.nets.layers import Dense


class CategoricalHead(nn.Module):
    """Maps features [N, F] to normalised log-probabilities [N, A]."""

    def __init__(self, features: int, distribution: Categorical) -> None:
        super().__init__()
        self.distribution = distribution
        self.dense = Dense(features, distribution.num_actions)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.activate(self.dense(features))

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn the dense layer's output [N, A] into parameters."""
        return F.log_softmax(logits, dim=-1)


class GaussianHead(nn.Module):
    """Maps features [N, F] to means, beside log deviations that do not depend on them, [N, 2D]."""

    def __init__(self, features: int, distribution: DiagonalGaussian) -> None:
        super().__init__()
        self.distribution = distribution
        self.dense = Dense(features, distribution.size)
        self.log_std = nn.Parameter(torch.zeros(distribution.size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.activate(self.dense(features))

    def activate(self, means: torch.Tensor) -> torch.Tensor:
        """Turn the dense layer's output [N, D] into parameters."""
        return torch.cat([means, self.log_std.expand_as(means)], dim=-1)


def make_head(
    distribution: Categorical | DiagonalGaussian, features: int
) -> CategoricalHead | GaussianHead:
    """Make the head that gives this distribution's parameters."""
    if isinstance(distribution, Categorical):
        return CategoricalHead(features, distribution)
    return GaussianHead(features, distribution)
