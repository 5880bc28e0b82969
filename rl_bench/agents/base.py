"""Defines what the training loop asks of an algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from rl_bench.types import Trajectory


class Agent(Protocol):
    """A learner: it owns the float32 weights, the optimiser and the algorithm's statistics."""

    def update(self, trajectory: Trajectory, *, progress: float) -> dict[str, float | None]:
        """Learn from one trajectory; `progress` in [0, 1] drives the schedules.

        Returns the metrics under their `train/` names (docs/metrics.md).
        Raises: TrainingError on NaN or infinity, before any weight was touched by it.
        """

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The current weights, to be published to the rollouts."""

    def load_learned(self, state: Mapping[str, Any]) -> None:
        """Take weights and statistics from another agent's `state_dict`, and begin anew."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly: tensors, numbers and strings only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
