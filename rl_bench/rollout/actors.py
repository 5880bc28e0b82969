"""Rollouts in worker processes that run ahead: actors collect while the learner learns.

Each actor fills a block of shared memory with the newest weights it finds, and waits with the next
one until the learner takes it: that bounds memory and the age of what is learned. It has two
blocks, so that it can begin the next one while the learner copies the last. The learner takes as
many blocks as make a batch, whichever are finished first. Those that are too old by then are
dropped, and counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from rl_bench.rollout.crew import Crew
from rl_bench.rollout.processes import WorkerLost
from rl_bench.rollout.service import NEWEST, Collected, PublishedWeights
from rl_bench.types import Delivery, EpisodeStats, Trajectory


class ActorSource:
    """N actors with their columns of both `blocks` [T, B], and the learner's `batch` [T, B].

    A batch holds N blocks; a fast actor may give two, a slow one none. The blocks of an actor come
    in the order of time. `max_policy_lag` is the number of updates that the weights behind a block
    may be old when it is learned from.
    Raises: WorkerLost when an actor is lost and the crew's budget is spent.
    """

    def __init__(
        self,
        crew: Crew,
        blocks: Sequence[Trajectory],
        batch: Trajectory,
        weights: PublishedWeights,
        *,
        max_policy_lag: int,
        policy_update_frequency: int,
    ) -> None:
        self.crew, self.weights = crew, weights
        self.trajectory = batch
        self._each = batch.num_envs // len(crew)
        self._blocks = [
            [self._columns(whole, index) for whole in blocks] for index in range(len(crew))
        ]
        self._turns = [0] * len(crew)  # which of its blocks each writes, or has written
        self._max_policy_lag = max_policy_lag
        self._policy_update_frequency = policy_update_frequency
        self._updates = 0
        self._has_published = False
        self._collecting: set[int] = set()
        self._finished: deque[tuple[int, Collected]] = deque()  # in the order of arrival

    @property
    def restarts(self) -> int:
        return self.crew.restarts

    def next_batch(self) -> Trajectory:
        episodes = EpisodeStats()
        delivery = Delivery()
        free = set(range(len(self.crew)))  # places of the batch
        self._ask_idle()
        while free:
            index, collected = self._next_finished(delivery)
            episodes.extend(collected.episodes)
            block = self._block(index)
            self._turns[index] ^= 1
            self._ask(index)
            assert (block.policy_version == collected.version).all(), "a block was not written"
            if self._updates - collected.version > self._max_policy_lag:
                delivery.dropped_timesteps += block.timesteps
            else:
                place = index if index in free else min(free)
                free.remove(place)
                self._columns(self.trajectory, place).copy_(block)
                delivery.queue_ages.append(time.monotonic() - collected.finished_at)
        self.trajectory.episodes, self.trajectory.delivery = episodes, delivery
        return self.trajectory

    def _block(self, index: int) -> Trajectory:
        return self._blocks[index][self._turns[index]]

    def _columns(self, trajectory: Trajectory, place: int) -> Trajectory:
        return trajectory.columns(place * self._each, (place + 1) * self._each)

    def _ask_idle(self) -> None:
        """Those that have just been made, and those that were lost during the update."""
        waiting = {index for index, _ in self._finished}
        for index in range(len(self.crew)):
            if index not in self._collecting and index not in waiting:
                self._ask(index)

    def _ask(self, index: int) -> None:
        self._collecting.discard(index)
        self.crew.ask_to_collect(index, NEWEST, block=self._turns[index])
        self._collecting.add(index)

    def _next_finished(self, delivery: Delivery) -> tuple[int, Collected]:
        started = time.monotonic()
        while not self._finished:
            try:
                self._take(self.crew.next_collected(self._collecting))
            except WorkerLost as lost:
                self._collecting.discard(lost.worker)
                self.crew.replace(lost)
                self._ask(lost.worker)
        delivery.learner_waiting_seconds += time.monotonic() - started
        return self._finished.popleft()

    def _take(self, reply: tuple[int, Collected]) -> None:
        self._collecting.remove(reply[0])
        self._finished.append(reply)

    def idle(self) -> Sequence[int]:
        """Actors that have nothing to collect into until the next batch is taken."""
        try:
            while reply := self.crew.collected_by_now(self._collecting):
                self._take(reply)
        except WorkerLost as lost:  # it is replaced before the next batch
            self._collecting.discard(lost.worker)
        return [index for index, _ in self._finished]

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Every `policy_update_frequency` updates; the first ones at once."""
        self._updates = version
        if not self._has_published or version % self._policy_update_frequency == 0:
            self.weights.publish(weights, version=version)
            self._has_published = True

    def unfinished_episodes(self) -> int:
        return self.crew.unfinished_episodes()

    def timings(self) -> dict[str, float]:
        return self.crew.timings()

    def worker_pids(self) -> list[int]:
        return self.crew.pool.pids()

    def state_dict(self) -> dict[str, Any]:
        """Once all have finished what they collect, with the blocks that nobody learned from."""
        while self._collecting:
            try:
                self._take(self.crew.next_collected(self._collecting))
            except WorkerLost as lost:
                self._collecting.discard(lost.worker)
        finished = [
            {"worker": index, "collected": asdict(collected), "block": self._copy_of_block(index)}
            for index, collected in self._finished
        ]
        return {**self.crew.state_dict(), "finished": finished}

    def _copy_of_block(self, index: int) -> dict[str, torch.Tensor]:
        """Of its own memory: saving a view would save all blocks."""
        return {name: tensor.clone() for name, tensor in self._block(index).tensors().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.crew.load_state_dict(state)
        for entry in state["finished"]:
            collected = dict(entry["collected"])
            collected["episodes"] = EpisodeStats(**collected["episodes"])
            collected["finished_at"] = time.monotonic()
            self._block(entry["worker"]).copy_(Trajectory.of(entry["block"]))
            self._finished.append((entry["worker"], Collected(**collected)))

    def close(self) -> None:
        self.crew.close()
