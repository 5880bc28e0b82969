"""Plays a fixed number of episodes in each of many environments with a fixed policy.

For one seed, the k-th episode of environment i is the same level whatever the policy does, so a
quota for each environment gives every policy the same levels, and short episodes no more weight
than long ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from rl_bench.envs import VectorEnv
from rl_bench.errors import WorkerError
from rl_bench.nets.executor import Executor

MOST_STEPS = 100_000  # without the end of any episode


@dataclass
class Episodes:
    """Holds finished episodes in the order of their environments, then of time.

    `returns` are sums of raw rewards, `lengths` are timesteps; `cut`: a time limit ended it.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)


def quotas(num_episodes: int, num_envs: int) -> np.ndarray:
    """Share episodes out over environments [B]; the first ones play one more where uneven."""
    each, more = divmod(num_episodes, num_envs)
    return np.array([each + (i < more) for i in range(num_envs)])


@torch.inference_mode()
def play(
    policy: Executor,
    env: VectorEnv,
    *,
    num_episodes: int,
    deterministic: bool,
    seed: int,
    time_limit: int | None = None,
    on_episode: Callable[[], None] = lambda: None,
    on_frame: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> Episodes:
    """Play `num_episodes` in all; environments that have played their quota are ignored.

    `seed` is that of the sampled actions; the environment has its own. `on_frame` gets every
    observation [B, *] that is acted on, and the number of each environment's episode [B].
    Raises: WorkerError when no episode ends within 100,000 steps.
    """
    quota = quotas(num_episodes, env.num_envs)
    generator = torch.Generator().manual_seed(seed)
    played = np.zeros(env.num_envs, dtype=np.int64)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    finished: list[Episodes] = [Episodes() for _ in range(env.num_envs)]
    obs, idle = env.reset(), 0
    while (playing := played < quota).any():
        if on_frame is not None:
            on_frame(obs, played)
        step = env.step(_act(policy, obs, playing, deterministic, generator))
        obs = step.obs
        returns += step.rewards
        lengths += 1
        ended = step.terminated | step.truncated
        idle = 0 if ended.any() else idle + 1
        if idle >= MOST_STEPS:
            raise WorkerError(
                f"no episode ended within {idle:,} steps: this environment needs a time limit "
                "(max_episode_steps of its registration)"
            )
        for i in np.flatnonzero(ended & playing):
            finished[i].returns.append(float(returns[i]))
            finished[i].lengths.append(int(lengths[i]))
            cut = bool(step.truncated[i]) or (time_limit is not None and lengths[i] >= time_limit)
            finished[i].cut.append(bool(cut))
            on_episode()
        played[ended] += 1
        returns[ended] = 0.0
        lengths[ended] = 0
    whole = Episodes()
    for episodes in finished:
        whole.returns += episodes.returns
        whole.lengths += episodes.lengths
        whole.cut += episodes.cut
    return whole


def _act(
    policy: Executor,
    obs: np.ndarray,
    playing: np.ndarray,
    deterministic: bool,
    generator: torch.Generator,
) -> np.ndarray:
    """Choose actions [B, …]: the policy's where an episode still counts, 0 elsewhere."""
    parameters, _ = policy.forward(torch.from_numpy(obs[playing]))
    if deterministic:
        chosen = policy.net.distribution.mode(parameters)
    else:
        # For all environments, so that one's actions do not depend on which others still play.
        noise = policy.net.distribution.draw_noise((len(obs),), generator)[
            torch.from_numpy(playing)
        ]
        chosen = policy.net.distribution.sample(parameters, noise)
    actions = np.zeros((len(obs), *chosen.shape[1:]), dtype=chosen.numpy().dtype)
    actions[playing] = chosen.numpy()
    return actions
