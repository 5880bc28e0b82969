"""Steps any Gymnasium environment through Gymnasium's own vector API."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from rl_bench.config.schema import EnvConfig
from rl_bench.envs.base import EnvSpec, Step
from rl_bench.errors import ConfigError

# A discount of .999, which suits Procgen, looks 1,000 steps ahead; few tasks here are that long.
DEFAULTS = {"training.gamma": 0.99}


def spec(config: EnvConfig) -> EnvSpec:
    """Describe a Gymnasium environment. Raises: ConfigError when it cannot be made."""
    observations, actions = spaces_of(config.name)
    return EnvSpec(
        name=config.name,
        description=config.name,
        observation_space=observations,
        action_space=actions,
        make=functools.partial(make, config.name),
    )


def make(
    name: str, num_envs: int, *, seed: int, first_index: int, num_threads: int, native: bool
) -> GymnasiumVectorEnv:
    """Make environments, stepped by the caller (`base.MakeVectorEnv`)."""
    return GymnasiumVectorEnv(name, num_envs, seed=seed)


def spaces_of(name: str) -> tuple[gymnasium.Space, gymnasium.Space]:
    """Make one environment to ask for its spaces of observations and actions.

    Raises: ConfigError when Gymnasium does not know the id or cannot make it.
    """
    try:
        env = gymnasium.make(name)
        env.close()
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(f"env.name: '{name}' needs a package that is missing: {error}") from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"env.name: '{name}' is neither a Procgen game nor a Gymnasium id: {first_line}"
        ) from error
    except Exception as error:  # whatever somebody's environment raises when it is made
        raise ConfigError(
            f"env.name: '{name}' cannot be made: {type(error).__name__}: {error}"
        ) from error
    return _float32(env.observation_space), env.action_space


class GymnasiumVectorEnv:
    """Steps B copies of a Gymnasium environment in this process.

    Floats are float32. Box actions are clipped to the bounds here, so a policy may go beyond.
    Gymnasium has no snapshots: after a resume the episodes start anew (`get_state` is None).
    """

    def __init__(self, name: str, num_envs: int, *, seed: int) -> None:
        self._env = gymnasium.make_vec(
            name,
            num_envs=num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        )
        self.num_envs = num_envs
        self.action_space = self._env.single_action_space
        self.observation_space = _float32(self._env.single_observation_space)
        self._seed = seed % 2**31

    def reset(self) -> np.ndarray:
        return self._cast(self._env.reset(seed=self._seed)[0])

    def step(self, actions: np.ndarray) -> Step:
        obs, rewards, terminated, truncated, info = self._env.step(self._to_env(actions))
        final_obs = {
            int(i): self._cast(info["final_obs"][i])
            for i in np.flatnonzero(truncated & ~terminated)
        }
        return Step(self._cast(obs), rewards.astype(np.float32), terminated, truncated, final_obs)

    def get_state(self) -> None:
        return None

    def set_state(self, states: Sequence[bytes]) -> None:
        raise AssertionError("Gymnasium environments give no snapshots")

    def close(self) -> None:
        self._env.close()

    def _cast(self, obs: np.ndarray) -> np.ndarray:
        return np.asarray(obs, dtype=self.observation_space.dtype)

    def _to_env(self, actions: np.ndarray) -> np.ndarray:
        space: Any = self.action_space
        if isinstance(space, Box):
            return np.clip(actions, space.low, space.high).astype(space.dtype)
        if isinstance(space, Discrete):
            return actions + space.start
        return actions


def _float32(space: gymnasium.Space) -> gymnasium.Space:
    if isinstance(space, Box) and space.dtype == np.float64:
        low, high = (bound.astype(np.float32) for bound in (space.low, space.high))
        return Box(low, high, space.shape, np.float32)
    return space
