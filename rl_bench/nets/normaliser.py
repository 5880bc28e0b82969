"""Normalises vector observations by running statistics that travel with the weights."""

from __future__ import annotations

import torch
from torch import nn

CLIP = 10.0
EPSILON = 1e-8


class ObservationNormaliser(nn.Module):
    """Maps observations [N, *] to (x − mean) / deviation, clipped to ±10.

    The statistics are buffers of the network: published with its weights, saved in its checkpoints,
    used in evaluation. Only the learner moves them on, after it has learned from a trajectory: in
    lock-step the policy that acted and the policy that learns then see the same numbers. Until the
    first update observations pass unchanged. Moments are kept in float64.
    Source: running moments as in openai/baselines VecNormalize; merged by Chan et al. 1983.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))
        # Derived from the moments, in the dtype of observations.
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    count: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Normalise observations [N, *] to float32."""
        return ((obs.float() - self.shift) * self.scale).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def update(self, obs: torch.Tensor) -> None:
        """Take observations [M, *] into the running moments."""
        obs = obs.double()
        size, mean = obs.shape[0], obs.mean(0)
        delta, total = mean - self.mean, self.count + size
        m2 = self.variance * self.count + obs.var(0, correction=0) * size
        m2 += delta.square() * self.count * size / total
        self.mean += delta * size / total
        self.variance.copy_(m2 / total)
        self.count.copy_(total)
        self.shift.copy_(self.mean)
        self.scale.copy_((self.variance + EPSILON).rsqrt())
