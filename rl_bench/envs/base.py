"""What rollouts ask of an environment: many at once, restarting by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import gymnasium
import numpy as np


class Step(NamedTuple):
    """What one action in each of B environments caused.

    Shapes: obs [B, *] (already of the new episode where one ended), rewards [B] float32,
    terminated and truncated [B] bool. `final_obs` maps an environment's index to the last
    observation of its truncated episode, where the environment gives one. Arrays may be the
    environment's own memory, as that of `reset`: they are valid until the next step.
    """

    obs: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_obs: dict[int, np.ndarray]


class VectorEnv(Protocol):
    """B environments of one kind, stepped together."""

    num_envs: int
    observation_space: gymnasium.Space
    action_space: gymnasium.Space

    def reset(self) -> np.ndarray:
        """Start an episode everywhere; observations [B, *]. Called once, before any step."""

    def step(self, actions: np.ndarray) -> Step:
        """Act everywhere; episodes that end restart within the step.

        `actions` belong to the caller: they are neither changed nor kept.
        """

    def get_state(self) -> Sequence[bytes] | None:
        """A snapshot per environment, or None where the environment cannot give one."""

    def set_state(self, states: Sequence[bytes]) -> None:
        """Go back to a snapshot. What it showed last is the caller's to remember."""

    def close(self) -> None:
        """Free what the environments hold; may be called twice."""
