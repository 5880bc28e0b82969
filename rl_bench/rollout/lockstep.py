"""Rollouts in worker processes, in lock-step: all collect with the newest weights, then all wait.

Worker i writes its steps in place into column block i of one trajectory in shared memory; only
versions, counts and finished episodes travel. Which memory may be written when follows from the
requests: the workers write between `collect` and its reply, the main process only while none does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from rl_bench.rollout.asynchronous import Dropped, unpacked_block
from rl_bench.rollout.worker_group import Crew
from rl_bench.rollout.worker_service import Collected, PublishedWeights
from rl_bench.types import Delivery, EpisodeStats, Trajectory
from rl_bench.workers.handle import WorkerLost

logger = logging.getLogger(__name__)


class ParallelSource:
    """N worker processes that fill one trajectory together, which lies in shared memory.

    Raises: WorkerLost when a worker is lost and the crew's budget is spent.
    """

    def __init__(self, crew: Crew, trajectory: Trajectory, weights: PublishedWeights) -> None:
        self.crew, self.trajectory, self.weights = crew, trajectory, weights
        self._version = 0
        self._dropped = Dropped()

    @property
    def restarts(self) -> int:
        return self.crew.restarts

    def next_batch(self) -> Trajectory:
        started = time.monotonic()
        everyone = range(len(self.crew))
        collected: dict[int, Collected] = {}
        for index in everyone:
            self.crew.ask_to_collect(index, self._version, collecting=range(index))
        while len(collected) < len(everyone):
            collecting = set(everyone) - set(collected)
            try:
                index, reply = self.crew.next_collected(collecting)
            except WorkerLost as lost:
                others = collecting - {lost.worker}
                self.crew.replace(lost, others)
                self.crew.ask_to_collect(lost.worker, self._version, collecting=others)
                continue
            collected[index] = reply
        assert (self.trajectory.policy_version == self._version).all(), "a block was not written"
        self.trajectory.episodes = EpisodeStats()
        for index in everyone:  # in the order of the workers, never of arrival
            self.trajectory.episodes.extend(collected[index].episodes)
        self.trajectory.episodes.extend(self._dropped.episodes)
        now = time.monotonic()
        ages = [now - collected[index].finished_at for index in everyone]
        self.trajectory.delivery = Delivery(
            ages,
            learner_waiting_seconds=now - started,
            dropped_timesteps=self._dropped.timesteps,
        )
        self._dropped = Dropped()
        return self.trajectory

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        self.weights.publish(weights, version=version)
        self._version = version

    def unfinished_episodes(self) -> int:
        return self.crew.unfinished_episodes()

    def timings(self) -> dict[str, float]:
        return self.crew.timings()

    def worker_pids(self) -> list[int]:
        return self.crew.pool.pids()

    def state_dict(self) -> dict[str, Any]:
        return {**self.crew.state_dict(), "dropped": asdict(self._dropped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.crew.load_state_dict(state)
        self._dropped = Dropped.of(state.get("dropped"))
        if state.get("finished"):
            logger.warning(
                "%d blocks that actors had collected ahead are not learned from in lock-step",
                len(state["finished"]),
            )
            for entry in state["finished"]:
                self._dropped.add(unpacked_block(entry))

    def close(self) -> None:
        self.crew.close()
