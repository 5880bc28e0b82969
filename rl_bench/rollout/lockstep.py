"""Collects in worker processes in lock-step: all act with the newest weights, then all wait.

Worker i writes its steps in place into column block i of one trajectory in shared memory; only
versions, counts and finished episodes travel. Which memory may be written when follows from the
requests: the workers write between `collect` and its reply, the main process only while none does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch

from rl_bench.rollout.backlog import Dropped, Finished
from rl_bench.rollout.weights import Weights
from rl_bench.rollout.worker_group import WorkerGroup
from rl_bench.rollout.worker_service import Collected
from rl_bench.types import Delivery, EpisodeStats, Trajectory
from rl_bench.workers.handle import WorkerLost

logger = logging.getLogger(__name__)


class LockstepSource:
    """N worker processes that fill one trajectory [T, B] together.

    Raises: WorkerLost when a worker is lost and the group's budget is spent.
    """

    def __init__(self, group: WorkerGroup, trajectory: Trajectory, weights: Weights) -> None:
        self.group, self.trajectory, self.weights = group, trajectory, weights
        self._version = 0
        self._dropped = Dropped()
        self._collected: dict[int, Collected] = {}  # of a rollout that is not complete

    @property
    def restarts(self) -> int:
        return self.group.restarts

    def next_batch(self) -> Trajectory:
        started = time.monotonic()
        everyone = range(len(self.group))
        collected = self._collected
        for index in everyone:
            self.group.ask_to_collect(index, self._version)
        while len(collected) < len(everyone):
            try:
                index, reply = self.group.next_collected()
            except WorkerLost as lost:
                self.group.replace(lost)
                self.group.ask_to_collect(lost.worker, self._version)
                continue
            collected[index] = reply
        assert (self.trajectory.policy_version == self._version).all(), "a block was not written"
        self.trajectory.episodes = EpisodeStats()
        for index in everyone:  # in the order of the workers, never of arrival
            self.trajectory.episodes.extend(collected[index].episodes)
        self.trajectory.episodes.extend(self._dropped.episodes)
        now = time.monotonic()
        self.trajectory.delivery = Delivery(
            queue_ages=[now - collected[index].finished_at for index in everyone],
            learner_waiting_seconds=now - started,
            dropped_timesteps=self._dropped.timesteps,
        )
        self._dropped, self._collected = Dropped(), {}
        return self.trajectory

    def idle(self) -> Collection[int]:
        """Return all: between rollouts every worker waits."""
        return range(len(self.group))

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        self.weights.publish(weights, version=version)
        self._version = version

    def unfinished_episodes(self) -> int:
        return self.group.unfinished_episodes()

    def timings(self) -> dict[str, float]:
        return self.group.timings()

    def worker_pids(self) -> list[int]:
        return self.group.pool.pids()

    def state_dict(self) -> dict[str, Any]:
        """Save; steps of a rollout that has failed count as dropped."""
        self._collected |= dict(self.group.let_all_finish())
        dropped = Dropped(self._dropped.timesteps, EpisodeStats())
        dropped.episodes.extend(self._dropped.episodes)
        each = self.trajectory.num_envs // len(self.group)
        for index, collected in self._collected.items():
            block = self.trajectory.columns(index * each, (index + 1) * each)
            dropped.add(Finished(index, collected, block))
        return {**self.group.state_dict(), "dropped": asdict(dropped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.group.load_state_dict(state)
        self._dropped = Dropped.from_state(state.get("dropped"))
        if state.get("finished"):
            logger.warning(
                "%d blocks that workers had collected ahead are not learned from in lock-step",
                len(state["finished"]),
            )
            for entry in state["finished"]:
                self._dropped.add(Finished.from_state(entry))

    def close(self) -> None:
        self.group.close()
