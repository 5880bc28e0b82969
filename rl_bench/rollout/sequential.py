"""Collects rollouts in this process, taking turns with the learner."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from rl_bench.rollout.source import warn_without_snapshots
from rl_bench.rollout.worker import RolloutWorker
from rl_bench.types import EpisodeStats, Trajectory


class SequentialSource:
    """Runs workers one after the other, worker i in column block i.

    The sequential baseline is one worker with all environments; several prove that parallel
    rollouts are the same.
    """

    restarts = 0

    def __init__(self, workers: list[RolloutWorker]) -> None:
        self.workers = workers
        env = workers[0].env
        num_envs = sum(worker.env.num_envs for worker in workers)
        self.trajectory = Trajectory.allocate(
            workers[0].n_steps, num_envs, env.observation_space, env.action_space
        )
        stops = torch.tensor([w.env.num_envs for w in workers]).cumsum(0).tolist()
        self.blocks = [
            self.trajectory.columns(stop - w.env.num_envs, stop)
            for w, stop in zip(workers, stops, strict=True)
        ]

    def next_batch(self) -> Trajectory:
        self.trajectory.episodes = EpisodeStats()
        for worker, block in zip(self.workers, self.blocks, strict=True):
            try:
                self.trajectory.episodes.extend(worker.collect(block))
            except BaseException:
                worker.is_broken = True  # its environments and its books no longer agree
                raise
        return self.trajectory

    def idle(self) -> Collection[int]:
        """Return nobody: all is done in this process."""
        return ()

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        for worker in self.workers:
            worker.policy.load_weights(weights)
            worker.version = version

    def unfinished_episodes(self) -> int:
        return sum(worker.unfinished_episodes() for worker in self.workers)

    def timings(self) -> dict[str, float]:
        count = len(self.workers)
        return {
            "simulation": sum(w.simulation_seconds for w in self.workers) / count,
            "inference": sum(w.inference_seconds for w in self.workers) / count,
            "waiting": 0.0,  # this process always has something to do
        }

    def worker_pids(self) -> list[int]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"workers": [worker.state_dict() for worker in self.workers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for worker, saved in zip(self.workers, state["workers"], strict=True):
            worker.load_state_dict(saved)
        warn_without_snapshots(state["workers"])

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
