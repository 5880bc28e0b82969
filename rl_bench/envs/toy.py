"""Defines tiny environments whose every number is known, which test the plumbing, not learning."""

from __future__ import annotations

import functools
import os
import struct
import sys
import time
from collections.abc import Callable, Sequence

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from rl_bench.config.schema import EnvConfig
from rl_bench.envs.base import EnvSpec, Step, VectorEnv
from rl_bench.errors import ConfigError


class CountingEnv:
    """Shows its own clock: obs = (stream, steps since the start, steps in this episode).

    The reward of a step is the new clock. Episodes of stream k last 3 + k % 4 steps and end in
    turn by termination and by truncation, so a gap, a repeat or a shifted end shows at once.
    """

    action_space: gymnasium.Space = Discrete(3)

    def __init__(self, num_envs: int, *, seed: int) -> None:
        self.num_envs = num_envs
        self.observation_space: gymnasium.Space = Box(-np.inf, np.inf, (3,), np.float32)
        self.streams = seed % 1000 * 1000 + np.arange(num_envs)
        self.clocks = np.zeros(num_envs, dtype=np.int64)
        self.episode_steps = np.zeros(num_envs, dtype=np.int64)
        self.episodes = np.zeros(num_envs, dtype=np.int64)

    def reset(self) -> np.ndarray:
        return self._obs()

    def step(self, actions: np.ndarray) -> Step:
        self.clocks += 1
        self.episode_steps += 1
        ended = self.episode_steps >= 3 + self.streams % 4
        truncated = ended & (self.episodes % 2 == 1)
        final = self._obs()
        self.episode_steps[ended] = 0
        self.episodes[ended] += 1
        final_obs = {int(i): final[i] for i in np.flatnonzero(truncated)}
        rewards = self.clocks.astype(np.float32)
        return Step(self._obs(), rewards, ended & ~truncated, truncated, final_obs)

    def get_state(self) -> Sequence[bytes]:
        columns = zip(self.streams, self.clocks, self.episode_steps, self.episodes, strict=True)
        return [struct.pack("4q", *row) for row in columns]

    def set_state(self, states: Sequence[bytes]) -> None:
        rows = np.array([struct.unpack("4q", state) for state in states])
        self.streams, self.clocks, self.episode_steps, self.episodes = rows.T.copy()

    def close(self) -> None:
        pass

    def _obs(self) -> np.ndarray:
        return np.stack([self.streams, self.clocks, self.episode_steps], 1).astype(np.float32)


class IdentityEnv:
    """Rewards naming the symbol that is shown with 1; ten steps an episode, best return 10."""

    num_symbols = 4
    episode_length = 10
    action_space: gymnasium.Space = Discrete(num_symbols)

    def __init__(self, num_envs: int, *, seed: int) -> None:
        self.num_envs = num_envs
        self.observation_space: gymnasium.Space = Box(0, 1, (self.num_symbols,), np.float32)
        self.generator = np.random.default_rng(seed)
        self.steps = 0
        self.symbols = self.generator.integers(self.num_symbols, size=num_envs)

    def reset(self) -> np.ndarray:
        return self._obs()

    def step(self, actions: np.ndarray) -> Step:
        rewards = (actions == self.symbols).astype(np.float32)
        self.symbols = self.generator.integers(self.num_symbols, size=self.num_envs)
        self.steps += 1
        ended = np.full(self.num_envs, self.steps % self.episode_length == 0)
        return Step(self._obs(), rewards, ended, np.zeros_like(ended), {})

    def get_state(self) -> None:
        return None

    def set_state(self, states: Sequence[bytes]) -> None:
        raise AssertionError("the identity environment gives no snapshots")

    def close(self) -> None:
        pass

    def _obs(self) -> np.ndarray:
        return np.eye(self.num_symbols, dtype=np.float32)[self.symbols]


class CrashingEnv(CountingEnv):
    """Counts, and raises in its 50th step."""

    def step(self, actions: np.ndarray) -> Step:
        if self.clocks[0] >= 49:
            raise RuntimeError("the crashing environment crashed, as it was built to")
        return super().step(actions)


class QuittingEnv(CountingEnv):
    """Counts, and calls sys.exit() in its 50th step, as a closed window does."""

    def step(self, actions: np.ndarray) -> Step:
        if self.clocks[0] >= 49:
            sys.exit("the quitting environment quit, as it was built to")
        return super().step(actions)


class ExitingEnv(CountingEnv):
    """Counts, and ends its process in its 50th step, as C++ code that calls exit() does."""

    def step(self, actions: np.ndarray) -> Step:
        if self.clocks[0] >= 49:
            os._exit(7)
        return super().step(actions)


class HangingEnv(CountingEnv):
    """Counts, and does not come back from its 50th step."""

    def step(self, actions: np.ndarray) -> Step:
        while self.clocks[0] >= 49:
            time.sleep(1.0)
        return super().step(actions)


class StubbornEnv(CountingEnv):
    """Counts, does not come back from its 50th step, and swallows whatever is raised in it."""

    def step(self, actions: np.ndarray) -> Step:
        while self.clocks[0] >= 49:
            try:
                time.sleep(1.0)
            except Exception:  # noqa: BLE001 - on purpose
                continue
        return super().step(actions)


class StillbornEnv(CountingEnv):
    """Raises when it is started."""

    def reset(self) -> np.ndarray:
        raise RuntimeError("the stillborn environment did not start, as it was built to")


class MoodyEnv(CountingEnv):
    """Does not start while there is a file `bad-mood` in the current directory."""

    def reset(self) -> np.ndarray:
        if os.path.exists("bad-mood"):
            raise RuntimeError("the moody environment is in a bad mood")
        return super().reset()


class NanEnv(CountingEnv):
    """Counts, and shows NaN from its 50th step on."""

    def _obs(self) -> np.ndarray:
        obs = super()._obs()
        obs[self.clocks >= 50] = np.nan
        return obs


TOYS: dict[str, Callable[..., VectorEnv]] = {
    "toy-counting": CountingEnv,
    "toy-identity": IdentityEnv,
    "toy-crashing": CrashingEnv,
    "toy-quitting": QuittingEnv,
    "toy-exiting": ExitingEnv,
    "toy-hanging": HangingEnv,
    "toy-stubborn": StubbornEnv,
    "toy-stillborn": StillbornEnv,
    "toy-moody": MoodyEnv,
    "toy-nan": NanEnv,
}


def spec(config: EnvConfig) -> EnvSpec:
    """Describe a toy environment. Raises: ConfigError for an unknown one."""
    if config.name not in TOYS:
        raise ConfigError(
            f"env.name: there is no '{config.name}'; toy environments: {', '.join(TOYS)}"
        )
    env = TOYS[config.name](1, seed=0)
    return EnvSpec(
        name=config.name,
        description=config.name,
        observation_space=env.observation_space,
        action_space=env.action_space,
        make=functools.partial(make, config.name),
    )


def make(
    name: str, num_envs: int, *, seed: int, first_index: int, num_threads: int, native: bool
) -> VectorEnv:
    """Make toy environments, stepped by the caller (`base.MakeVectorEnv`)."""
    return TOYS[name](num_envs, seed=seed)
