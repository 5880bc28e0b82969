"""Stable-Baselines3's PPO on Procgen for a stretch of wall-clock time; prints one JSON line.

Runs in its own virtual environment and imports nothing of rl_bench. Procgen is stepped as one
vectorised native environment here too, so that the libraries differ and not the simulator.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import gym_notices.notices
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

gym_notices.notices.notices.clear()
from procgen import ProcgenGym3Env  # noqa: E402 - after gym's notice was silenced


class ProcgenVecEnv(VecEnv):
    """The native environment behind Stable-Baselines3's own interface."""

    def __init__(self, game: str, num_envs: int, seed: int, num_threads: int) -> None:
        self.native = ProcgenGym3Env(
            num=num_envs, env_name=game, distribution_mode="easy", num_levels=200, start_level=0,
            rand_seed=seed, num_threads=num_threads,
        )  # fmt: skip
        super().__init__(num_envs, Box(0, 255, (64, 64, 3), np.uint8), Discrete(15))

    def reset(self):
        return self.native.observe()[1]["rgb"]

    def step_async(self, actions):
        self.native.act(actions)

    def step_wait(self):
        rewards, obs, first = self.native.observe()
        return obs["rgb"], rewards, first, [{} for _ in range(self.num_envs)]

    def close(self):
        self.native.close()

    def get_attr(self, attr_name, indices=None):
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False for _ in self._get_indices(indices)]


class StopAfter(BaseCallback):
    """Ends `learn` at the first whole update after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.marks: list[tuple[float, int]] = []

    def _on_training_start(self) -> None:
        self.started = time.perf_counter()

    def _on_rollout_start(self) -> None:
        self.marks.append((time.perf_counter() - self.started, self.num_timesteps))

    def _on_step(self) -> bool:
        return self.marks[-1][0] < self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    env = VecMonitor(ProcgenVecEnv("coinrun", 32, arguments.seed, arguments.threads))
    model = PPO(
        "CnnPolicy", env, n_steps=128, batch_size=1024, n_epochs=4, learning_rate=5e-4,
        gamma=0.999, gae_lambda=0.95, clip_range=0.2, clip_range_vf=0.2, ent_coef=0.01,
        vf_coef=0.5, max_grad_norm=0.5, seed=arguments.seed, device="cpu",
    )  # fmt: skip
    stop = StopAfter(arguments.seconds)
    model.learn(10**9, callback=stop)
    seconds, timesteps = stop.marks[-1]
    print(json.dumps({
        "timesteps": timesteps,
        "seconds": seconds,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
