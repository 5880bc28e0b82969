"""Flattens trajectories to rows, and picks the rows of a minibatch without copying frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rl_bench.types import Trajectory


@dataclass
class Batch:
    """A trajectory without its time axis: N = T × B rows."""

    obs: torch.Tensor
    actions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    @classmethod
    def from_trajectory(
        cls, trajectory: Trajectory, advantages: torch.Tensor, returns: torch.Tensor
    ) -> Batch:
        """Make views on a trajectory's memory; advantages and returns [N] are flat already."""
        return cls(
            obs=trajectory.obs[:-1].flatten(0, 1),
            actions=trajectory.actions.flatten(0, 1),
            log_probs=trajectory.behaviour_log_probs.flatten(),
            values=trajectory.behaviour_values[:-1].flatten(),
            advantages=advantages,
            returns=returns,
        )


@dataclass
class Rows:
    """The rows of a batch at `indices` [M], of which nothing is copied yet.

    `mean` and `deviation` normalise their advantages.
    """

    batch: Batch
    indices: torch.Tensor
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def obs(self) -> torch.Tensor:
        """Return the observations of the whole batch [N, *], which `indices` count through."""
        return self.batch.obs

    def select(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy these rows [M, *] of a tensor [N, *]."""
        return tensor.index_select(0, self.indices)

    def normalised_advantages(self) -> torch.Tensor:
        """Return advantages [M], shifted by `mean` and divided by `deviation`."""
        return (self.select(self.batch.advantages) - self.mean) / self.deviation

    def normalise_by(self, index: torch.Tensor, floor: float) -> None:
        """Normalise by the advantages of a whole minibatch `index`, whatever share of it this is.

        Where no reward was seen, advantages are noise of the value function: `floor`, the least
        deviation, keeps it from being blown up to the size of a signal.
        """
        advantages = self.batch.advantages.index_select(0, index)
        self.mean = advantages.mean().item()
        self.deviation = advantages.std().clamp(min=floor).item() + 1e-8
