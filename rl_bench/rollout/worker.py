"""Steps environments with a policy, in whatever process it runs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rl_bench.envs import Step, VectorEnv
from rl_bench.errors import RlBenchError, TrainingError, WorkerError
from rl_bench.nets.executor import Executor
from rl_bench.rollout.watchdog import CallTimer
from rl_bench.types import RETURN_DISCOUNT, EpisodeStats, Trajectory

logger = logging.getLogger(__name__)

Rows = Mapping[str, np.ndarray]  # a trajectory's memory, by field


@dataclass(frozen=True)
class WorkerSeeds:
    """Holds independent seeds of one worker, so that no two workers see the same levels."""

    env: int
    sampling: int

    @classmethod
    def of(cls, seed: int, index: int, *, resumes: int = 0, restarts: int = 0) -> WorkerSeeds:
        """Derive the seeds of worker `index` from the run's `seed`.

        They differ in a resumed run, lest environments without snapshots repeat their first
        episodes; those with snapshots restore all of their state. They differ in a restarted worker
        too.
        """
        later = [resumes, restarts] if resumes or restarts else []
        entropy = [seed, index, *later]
        env, sampling = np.random.SeedSequence(entropy).generate_state(2)
        return cls(int(env), int(sampling))


class RolloutWorker:
    """Steps B environments with an acting copy of the policy.

    `on_step` is called after every step, to show that it goes on; `timer` is told of each call of
    the environment, which should be back within `limit_seconds`.
    Raises: WorkerError when an environment raises; TrainingError on observations that are not
    finite.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: Executor,
        *,
        n_steps: int,
        seed: int,
        description: str = "",
        on_step: Callable[[], None] = lambda: None,
        timer: CallTimer | None = None,
        limit_seconds: float = math.inf,
    ) -> None:
        self.env = env
        self.timer, self.limit_seconds = timer or CallTimer(), limit_seconds
        self.description = description
        self.on_step = on_step
        self.policy = policy
        self.n_steps = n_steps
        self.version = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.is_broken = False  # an environment has raised
        self.obs = self._ask_environment(env.reset)
        self.episode_returns = np.zeros(env.num_envs)
        self.episode_lengths = np.zeros(env.num_envs, dtype=np.int64)
        self.discounted_returns = np.zeros(env.num_envs)
        self.simulation_seconds = self.inference_seconds = 0.0

    @torch.inference_mode()
    def collect(self, out: Trajectory) -> EpisodeStats:
        """Fill `out` in place with the next T steps; return the episodes that finished."""
        noise = self.policy.net.distribution.draw_noise(
            (self.n_steps, self.env.num_envs), self.generator
        )
        out.final_values.zero_()
        out.policy_version.fill_(self.version)
        # What is small is written through numpy, in a tenth of torch's time for it.
        rows = {name: tensor.numpy() for name, tensor in out.tensors().items()}
        out.obs[0].copy_(torch.from_numpy(self.obs))
        of_steps = _step_by_step(
            out.obs[:-1], out.obs[1:], noise,
            out.actions, out.behaviour_log_probs, out.behaviour_values[:-1],
        )  # fmt: skip
        for t, (obs, next_obs, its_noise, *choice) in enumerate(of_steps):
            self._act(obs, its_noise, choice)
            step = self._step(rows["actions"][t])
            next_obs.copy_(torch.from_numpy(step.obs))  # by several threads of torch
            self._record(t, step, rows)
        rows["truncated"] &= ~rows["terminated"]
        self.obs = rows["obs"][-1].copy()
        self._require_finite(out)
        out.behaviour_values[-1] = self.policy.forward(out.obs[-1])[1]
        return self._finished_episodes(rows)

    def _act(self, obs: torch.Tensor, noise: torch.Tensor, choice: Sequence[torch.Tensor]) -> None:
        started = time.perf_counter()
        self.policy.act(obs, noise, choice)
        self.inference_seconds += time.perf_counter() - started

    def _step(self, actions: np.ndarray) -> Step:
        started = time.perf_counter()
        step: Step = self._ask_environment(self.env.step, actions)
        self.on_step()
        self.simulation_seconds += time.perf_counter() - started
        return step

    def _ask_environment(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the environment. Raises: WorkerError instead of what that raises."""
        self.timer.begin(self.limit_seconds)
        try:
            return function(*arguments)
        except RlBenchError:
            self.is_broken = True
            raise
        except BaseException as error:  # SystemExit and cancellations, too
            self.is_broken = True
            if isinstance(error, KeyboardInterrupt) or type(error).__module__.startswith(
                "rl_bench"
            ):
                raise  # somebody wants us to stop
            raise WorkerError(
                f"the environment {self.description} raised {type(error).__name__}: {error}"
            ) from error
        finally:
            self.timer.end()

    def _record(self, t: int, step: Step, rows: Rows) -> None:
        rows["rewards"][t] = step.rewards
        rows["terminated"][t] = step.terminated
        rows["truncated"][t] = step.truncated
        if step.final_obs:
            last_frames = torch.from_numpy(np.stack(list(step.final_obs.values())))
            rows["final_values"][t, list(step.final_obs)] = self.policy.forward(last_frames)[
                1
            ].numpy()

    def _finished_episodes(self, rows: Rows) -> EpisodeStats:
        """Find the finished episodes, in the order of their ends, and write `discounted_returns`.

        This comes after all steps: between two of them little of what it needs is in the CPU's
        caches, and it takes four times as long.
        """
        episodes = EpisodeStats()
        ends = rows["terminated"] | rows["truncated"]
        for t, (rewards, ended) in enumerate(zip(rows["rewards"], ends, strict=True)):
            self.episode_returns += rewards
            self.episode_lengths += 1
            self.discounted_returns = self.discounted_returns * RETURN_DISCOUNT + rewards
            rows["discounted_returns"][t] = self.discounted_returns
            if ended.any():
                episodes.returns += self.episode_returns[ended].tolist()
                episodes.lengths += self.episode_lengths[ended].tolist()
                self.episode_returns[ended] = 0.0
                self.discounted_returns[ended] = 0.0
                self.episode_lengths[ended] = 0
        return episodes

    def _require_finite(self, out: Trajectory) -> None:
        floats = [out.rewards] + ([out.obs] if out.obs.is_floating_point() else [])
        if not all(bool(torch.isfinite(tensor).all()) for tensor in floats):
            raise TrainingError(
                f"update {self.version + 1}: the environment gave an observation or a reward "
                "that is NaN or infinite; training stopped, the last checkpoint is good"
            )

    def close(self) -> None:
        """Close the environments; what they raise then is a warning."""
        try:
            self._ask_environment(self.env.close)
        except WorkerError as error:
            logger.warning("while closing: %s", error)

    def unfinished_episodes(self) -> int:
        """Count the episodes that have begun and not ended."""
        return int((self.episode_lengths > 0).sum())

    def state_dict(self) -> dict[str, Any]:
        states = self._snapshots()
        return {
            "env_states": None if states is None else [_to_tensor(state) for state in states],
            "obs": torch.from_numpy(self.obs.copy()),
            "episode_returns": torch.from_numpy(self.episode_returns.copy()),
            "episode_lengths": torch.from_numpy(self.episode_lengths.copy()),
            "discounted_returns": torch.from_numpy(self.discounted_returns.copy()),
            "generator": self.generator.get_state(),
            "version": self.version,
            "simulation_seconds": self.simulation_seconds,
            "inference_seconds": self.inference_seconds,
        }

    def _snapshots(self) -> Sequence[bytes] | None:
        """Ask for snapshots; None where the environment has raised, does so now, or has none."""
        if self.is_broken or self.timer.deadline is not None:  # the latter: it never came back
            return None
        try:
            return self._ask_environment(self.env.get_state)
        except WorkerError as error:
            logger.warning("no snapshot: %s", error)
            return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.version = state["version"]
        self.simulation_seconds = state["simulation_seconds"]
        self.inference_seconds = state["inference_seconds"]
        if state["env_states"] is None:
            return  # its episodes start anew
        self.env.set_state([s.numpy().tobytes() for s in state["env_states"]])
        self.obs = state["obs"].numpy().copy()
        self.episode_returns = state["episode_returns"].numpy().copy()
        self.episode_lengths = state["episode_lengths"].numpy().copy()
        self.discounted_returns = state["discounted_returns"].numpy().copy()


def _step_by_step(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the rows of all tensors, one step at a time.

    Tensors are split a hundred steps at a time: between two steps little of what that needs is in
    the CPU's caches, and it takes longer.
    """
    for first in range(0, len(tensors[0]), 100):
        yield from zip(*(t[first : first + 100].unbind() for t in tensors), strict=True)


def _to_tensor(state: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(state, dtype=np.uint8).copy())
