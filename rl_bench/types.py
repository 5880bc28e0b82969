"""Defines the trajectories that rollouts hand to agents. Knows shapes, not who fills them.

Axes: T time, B environments. Index rule, for every field: row t holds the observation at t, the
action taken there, and what that action caused. obs[T] and behaviour_values[T] only bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import gymnasium
import numpy as np
import torch

# The discount of `discounted_returns`: the Procgen paper's runs learn with 0.999 but scale rewards
# with this one (VecNormalize's default).
RETURN_DISCOUNT = 0.99


@dataclass
class EpisodeStats:
    """Holds the returns and lengths of the episodes that finished.

    Order: block by block, within a block by time, then by environment.
    Shapes: both lists have one entry per episode. `returns` are sums of raw rewards,
    `lengths` are timesteps.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def extend(self, other: EpisodeStats) -> None:
        self.returns.extend(other.returns)
        self.lengths.extend(other.lengths)


@dataclass
class Delivery:
    """Describes how a trajectory reached the learner; empty where nobody waits for anybody.

    `queue_ages`: seconds from the end of each of its blocks until the learner fetched it;
    `learner_waiting_seconds`: how long the learner waited for them; `dropped_timesteps`: those that
    were too old to be learned from and were discarded on the way.
    """

    queue_ages: list[float] = field(default_factory=list)
    learner_waiting_seconds: float = 0.0
    dropped_timesteps: int = 0


@dataclass
class ComputedGradient:
    """Holds the gradient of a trajectory, where whoever collected it computed it too.

    `tensors` are in the order of the network's parameters; `metrics` are the objective's.
    """

    tensors: list[torch.Tensor]
    metrics: dict[str, float]


@dataclass
class Trajectory:
    """Holds T steps of B environments, time first.

    Shapes:
        obs [T+1, B, *]: as the environment gives them (uint8, height × width × channel for images)
        actions [T, B] int64 for Discrete, [T, B, D] float32 for Box
        rewards [T, B] float32, raw
        terminated, truncated [T, B] bool
        behaviour_log_probs [T, B], behaviour_values [T+1, B] float32
        final_values [T, B] float32: the value of the episode's last observation where `truncated`
            (the next row of `obs` already shows the new episode), 0 elsewhere
        discounted_returns [T, B] float32: the episode's running return up to and including this
            step; it is multiplied by RETURN_DISCOUNT before each reward is added
        policy_version [B] int64: the number of updates behind the acting policy
    """

    obs: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    behaviour_log_probs: torch.Tensor
    behaviour_values: torch.Tensor
    final_values: torch.Tensor
    discounted_returns: torch.Tensor
    policy_version: torch.Tensor
    episodes: EpisodeStats = field(default_factory=EpisodeStats)
    delivery: Delivery = field(default_factory=Delivery)
    gradient: ComputedGradient | None = None

    @classmethod
    def allocate(
        cls,
        n_steps: int,
        num_envs: int,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        device: str = "cpu",
    ) -> Trajectory:
        """Allocate the memory of T steps; on the device `meta`, only describe it."""
        rows = torch.empty((n_steps, num_envs), device=device)
        more_rows = torch.empty((n_steps + 1, num_envs), device=device)
        discrete = isinstance(action_space, gymnasium.spaces.Discrete)
        obs_dtype = torch.from_numpy(np.empty(0, observation_space.dtype)).dtype
        trajectory = cls(
            obs=more_rows.new_empty(
                (*more_rows.shape, *_shape(observation_space)), dtype=obs_dtype
            ),
            actions=rows.new_empty(
                (*rows.shape, *_shape(action_space)),
                dtype=torch.int64 if discrete else torch.float32,
            ),
            rewards=rows,
            terminated=torch.empty_like(rows, dtype=torch.bool),
            truncated=torch.empty_like(rows, dtype=torch.bool),
            behaviour_log_probs=torch.empty_like(rows),
            behaviour_values=more_rows,
            final_values=torch.empty_like(rows),
            discounted_returns=torch.empty_like(rows),
            policy_version=rows.new_empty((num_envs,), dtype=torch.int64),
        )
        trajectory.mark_unwritten()
        return trajectory

    def mark_unwritten(self) -> None:
        """Write NaN, −1 or 0 everywhere, so that a gap shows."""
        for tensor in self.tensors().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
            elif tensor.dtype == torch.int64:
                tensor.fill_(-1)
            else:
                tensor.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every field that is a tensor, by name."""
        return {
            name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }

    def columns(self, start: int, stop: int) -> Trajectory:
        """Return the block of environments [start, stop) as views on the same memory."""
        views = {
            name: tensor[start:stop] if name == "policy_version" else tensor[:, start:stop]
            for name, tensor in self.tensors().items()
        }
        return Trajectory.from_tensors(views)

    def copy_(self, other: Trajectory) -> None:
        """Copy the steps of another trajectory of the same shape."""
        for name, tensor in self.tensors().items():
            tensor.copy_(other.tensors()[name])

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Trajectory:
        """Make a trajectory over existing memory, by field name."""
        return cls(**tensors)  # type: ignore[arg-type]

    @property
    def n_steps(self) -> int:
        return self.rewards.shape[0]

    @property
    def num_envs(self) -> int:
        return self.rewards.shape[1]

    @property
    def timesteps(self) -> int:
        """Return the number of environment steps over all environments."""
        return self.rewards.numel()


def _shape(space: gymnasium.Space) -> tuple[int, ...]:
    return space.shape or ()


@dataclass
class Counters:
    """Counts how far a run has come, since its very start (resumed runs count on)."""

    timesteps: int = 0
    updates: int = 0
