"""Scales rewards as in the Procgen paper: divides them by the spread of the discounted return."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rl_bench.types import Trajectory

CLIP = 10.0
EPSILON = 1e-8


class RewardScaler:
    """Scales rewards by the running standard deviation of the discounted return.

    Source: openai/baselines VecNormalize as used by Cobbe et al. 2020 (arXiv 1912.01588): the
    statistics are updated with each step before that step is scaled; no mean is subtracted; the
    result is clipped to ±10. Statistics are kept in float64. The discounted returns are the
    trajectory's own: they belong to the environments, wherever those run.
    """

    def __init__(self) -> None:
        self.mean, self.variance, self.count = 0.0, 1.0, 1e-4

    def scale(self, trajectory: Trajectory) -> torch.Tensor:
        """Return the scaled rewards [T, B] float32; update the statistics."""
        rewards = trajectory.rewards.numpy().astype(np.float64)
        returns = trajectory.discounted_returns.numpy().astype(np.float64)
        deviations = np.empty((len(rewards), 1))
        means, variances = returns.mean(axis=1).tolist(), returns.var(axis=1).tolist()
        for t, (mean, variance) in enumerate(zip(means, variances, strict=True)):
            self._update_statistics(mean, variance, returns.shape[1])
            deviations[t] = math.sqrt(self.variance + EPSILON)
        scaled = rewards / deviations
        return torch.from_numpy(np.clip(scaled, -CLIP, CLIP).astype(np.float32))

    def _update_statistics(self, mean: float, variance: float, size: int) -> None:
        """Merge the moments of a batch into the running ones (Chan et al. 1983)."""
        delta = mean - self.mean
        total = self.count + size
        m2 = self.variance * self.count + variance * size
        m2 += delta**2 * self.count * size / total
        self.mean += delta * size / total
        self.variance, self.count = m2 / total, total

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
