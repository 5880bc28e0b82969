"""Defines what rollouts ask of an environment, and what is known of one before it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import gymnasium
import numpy as np


class Step(NamedTuple):
    """Holds what one action in each of B environments caused.

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
    """Steps B copies of one environment together."""

    num_envs: int
    observation_space: gymnasium.Space
    action_space: gymnasium.Space

    def reset(self) -> np.ndarray:
        """Start an episode everywhere; return observations [B, *]. Called once, before any step."""

    def step(self, actions: np.ndarray) -> Step:
        """Act in every environment; episodes that end restart within the step.

        `actions` belong to the caller: they are neither changed nor kept.
        """

    def get_state(self) -> Sequence[bytes] | None:
        """Return a snapshot per environment, or None where the environment cannot give one."""

    def set_state(self, states: Sequence[bytes]) -> None:
        """Restore the environments from snapshots; the caller keeps their last observations."""

    def close(self) -> None:
        """Free what the environments hold; may be called twice."""


class MakeVectorEnv(Protocol):
    """Makes some of a run's environments. It is sent to worker processes, so it can be pickled."""

    def __call__(
        self, num_envs: int, *, seed: int, first_index: int, num_threads: int, native: bool
    ) -> VectorEnv:
        """Make `num_envs` environments, the first of which is number `first_index` of the run.

        `num_threads` threads step them (0: the caller's). These are the environment's own or, where
        `native` code may be used, those that torch computes with. Raises: ConfigError.
        """


@dataclass(frozen=True)
class EnvSpec:
    """Describes an environment before any is made for a run; its spaces were asked for once.

    `name` is its one canonical id, `description` names it and its options in messages.
    `scales_rewards`: returns vary so much that rewards are divided by their spread by default.
    `preload` are modules that load much: import them early, and before forking.
    """

    name: str
    description: str
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    make: MakeVectorEnv
    scales_rewards: bool = False
    preload: tuple[str, ...] = ()
    max_num_envs: int | None = None
