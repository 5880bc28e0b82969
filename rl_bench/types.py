"""The vocabulary: what rollouts hand to agents. Knows shapes, not who fills or reads them.

Axes: T time, B environments. Index rule, for every field: row t holds the observation at t, the
action taken there, and what that action caused. obs[T] and behaviour_values[T] only bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import gymnasium
import numpy as np
import torch


@dataclass
class EpisodeStats:
    """Every episode that finished: worker by worker, each in the order of time, then environment.

    Shapes: both lists have one entry per episode. `returns` are sums of raw rewards,
    `lengths` are timesteps.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def extend(self, other: EpisodeStats) -> None:
        self.returns.extend(other.returns)
        self.lengths.extend(other.lengths)


@dataclass
class Trajectory:
    """T steps of B environments, time first.

    Shapes:
        obs [T+1, B, *]: as the environment gives them (uint8, height × width × channel for images)
        actions [T, B] int64 for Discrete, [T, B, D] float32 for Box
        rewards [T, B] float32, raw
        terminated, truncated [T, B] bool
        behaviour_log_probs [T, B], behaviour_values [T+1, B] float32
        final_values [T, B] float32: the value of the episode's last observation where `truncated`
            (the next row of `obs` already shows the new episode), 0 elsewhere
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
    policy_version: torch.Tensor
    episodes: EpisodeStats = field(default_factory=EpisodeStats)

    @classmethod
    def allocate(
        cls,
        n_steps: int,
        num_envs: int,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
    ) -> Trajectory:
        """Reserve the memory once; floats start as NaN, so that a gap shows."""
        time_first = (n_steps, num_envs)
        if isinstance(action_space, gymnasium.spaces.Discrete):
            actions = torch.full(time_first, -1, dtype=torch.int64)
        else:
            actions = torch.full((*time_first, *action_space.shape), float("nan"))  # type: ignore[misc]
        obs_dtype = torch.from_numpy(np.empty(0, observation_space.dtype)).dtype
        obs_shape = observation_space.shape or ()
        return cls(
            obs=torch.zeros((n_steps + 1, num_envs, *obs_shape), dtype=obs_dtype),
            actions=actions,
            rewards=torch.full(time_first, float("nan")),
            terminated=torch.zeros(time_first, dtype=torch.bool),
            truncated=torch.zeros(time_first, dtype=torch.bool),
            behaviour_log_probs=torch.full(time_first, float("nan")),
            behaviour_values=torch.full((n_steps + 1, num_envs), float("nan")),
            final_values=torch.zeros(time_first),
            policy_version=torch.full((num_envs,), -1, dtype=torch.int64),
        )

    def columns(self, start: int, stop: int) -> Trajectory:
        """The block of environments [start, stop) as views on the same memory."""
        views = {
            f.name: getattr(self, f.name)[start:stop]
            if f.name == "policy_version"
            else getattr(self, f.name)[:, start:stop]
            for f in fields(self)
            if f.name != "episodes"
        }
        return Trajectory(**views)

    @property
    def n_steps(self) -> int:
        return self.rewards.shape[0]

    @property
    def num_envs(self) -> int:
        return self.rewards.shape[1]

    @property
    def timesteps(self) -> int:
        """Environment steps over all environments."""
        return self.rewards.numel()


@dataclass
class Counters:
    """How far a run has come, since its very start (resumed runs count on)."""

    timesteps: int = 0
    updates: int = 0
