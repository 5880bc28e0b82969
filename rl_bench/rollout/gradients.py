"""Collects rollouts whose gradients the workers compute themselves, as A3C does.

A worker takes the newest weights, collects, computes the gradient of what it has collected with the
weights it began with, and waits until the learner has applied it: then it begins anew. The others
go on meanwhile, so a gradient may be some updates old when its turn comes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch

from rl_bench.rollout.backlog import Dropped, Finished
from rl_bench.rollout.blocks import Blocks
from rl_bench.rollout.weights import NEWEST, Weights
from rl_bench.rollout.worker import RolloutWorker
from rl_bench.rollout.worker_group import WorkerGroup
from rl_bench.rollout.worker_service import (
    Collected,
    RolloutService,
    deserialise,
    serialise,
)
from rl_bench.types import ComputedGradient, Delivery, EpisodeStats, Trajectory
from rl_bench.workers.handle import WorkerLost
from rl_bench.workers.main import Service


class GradientSource:
    """N workers that compute gradients; `gradients_of` gives the memory a worker writes its to.

    A batch is the block of one worker, with its gradient. Gradients whose weights are more than
    `max_policy_lag` updates old are dropped and counted.
    Raises: WorkerLost when a worker is lost and the group's budget is spent.
    """

    def __init__(
        self,
        group: WorkerGroup,
        blocks: Blocks,
        gradients_of: Callable[[int], list[torch.Tensor]],
        weights: Weights,
        *,
        max_policy_lag: int,
    ) -> None:
        self.group, self.weights = group, weights
        self._blocks = [blocks.block(index) for index in range(len(group))]
        self._gradients = [gradients_of(index) for index in range(len(group))]
        self._max_policy_lag = max_policy_lag
        self._updates = 0
        self._finished: deque[Finished] = deque()  # in the order of their ends
        self._dropped = Dropped()  # since the last batch

    @property
    def restarts(self) -> int:
        return self.group.restarts

    def next_batch(self) -> Trajectory:
        started = time.monotonic()
        while True:
            finished = self._next_finished()
            if self._updates - finished.collected.version <= self._max_policy_lag:
                break
            self._dropped.add(finished)
        now, collected, block = time.monotonic(), finished.collected, finished.block
        assert (block.policy_version == collected.version).all(), "a block was not written"
        block.episodes = EpisodeStats()
        block.episodes.extend(collected.episodes)
        block.episodes.extend(self._dropped.episodes)
        block.delivery = Delivery(
            queue_ages=[now - collected.finished_at],
            learner_waiting_seconds=now - started,
            dropped_timesteps=self._dropped.timesteps,
        )
        block.gradient = ComputedGradient(self._gradients[finished.worker], collected.metrics)
        self._dropped = Dropped()
        return block

    def _next_finished(self) -> Finished:
        """Wait for the first that is finished; those whose gradient was applied begin anew."""
        while True:
            waiting = {finished.worker for finished in self._finished}
            for error in self.group.broken.values():
                raise error
            for index in set(range(len(self.group))) - self.group.collecting - waiting:
                self.group.ask_to_collect(index, NEWEST)
            self._note(*self.group.collected_so_far())
            if self._finished:
                return self._finished.popleft()
            try:
                self._note(self.group.next_collected())
            except WorkerLost as lost:
                self.group.replace(lost)

    def _note(self, *replies: tuple[int, Collected]) -> None:
        for index, collected in replies:
            self._finished.append(Finished(index, collected, self._blocks[index]))

    def idle(self) -> Collection[int]:
        """Return nobody: a worker computes gradients of its own."""
        return ()

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        self._updates = version
        self.weights.publish(weights, version=version)

    def unfinished_episodes(self) -> int:
        return self.group.unfinished_episodes()

    def timings(self) -> dict[str, float]:
        return self.group.timings()

    def worker_pids(self) -> list[int]:
        return self.group.pool.pids()

    def state_dict(self) -> dict[str, Any]:
        """Save once all have finished what they collect.

        Their gradients belong to weights that a resumed run has no more: it counts those rollouts
        as dropped.
        """
        self._note(*self.group.let_all_finish())
        dropped = Dropped(self._dropped.timesteps, EpisodeStats())
        dropped.episodes.extend(self._dropped.episodes)
        for finished in self._finished:
            dropped.add(finished)
        return {**self.group.state_dict(), "dropped": asdict(dropped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.group.load_state_dict(state)
        self._dropped = Dropped.from_state(state.get("dropped"))

    def begin_with(self, statistics: Mapping[str, Any]) -> None:
        """Have all workers scale rewards by statistics of another run, before they collect."""
        for index in range(len(self.group)):
            self.group.pool.ask(index, "begin_with", serialise(statistics))
            self.group.pool.next_reply([index])

    def close(self) -> None:
        self.group.close()


class ComputesGradient(Protocol):
    """Computes the gradient of a rollout, inside a worker (`agents/a3c.py`)."""

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take published weights."""

    def compute(self, trajectory: Trajectory) -> dict[str, float]:
        """Leave the gradient in the parameters; return its metrics."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return what it must remember between rollouts."""

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take back what `state_dict` gave."""


class GradientRolloutService(RolloutService):
    """Answers as `RolloutService` does, and computes the gradient of what it has collected.

    It is written to `gradients`, in the order of `parameters`.
    """

    def __init__(
        self,
        worker: RolloutWorker,
        index: int,
        blocks: Blocks,
        weights: Weights,
        gradient: ComputesGradient,
        parameters: Sequence[torch.nn.Parameter],
        gradients: Sequence[torch.Tensor],
    ) -> None:
        super().__init__(worker, index, blocks, weights)
        self.gradient, self.parameters, self.gradients = gradient, parameters, gradients

    def requests(self) -> Service:
        return {**super().requests(), "begin_with": self.begin_with}

    def begin_with(self, statistics: bytes) -> None:
        """Scale rewards by statistics of another run, as bytes."""
        self.gradient.load_state_dict(deserialise(statistics))

    def take_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().take_weights(weights)
        self.gradient.load_weights(weights)

    def collect(self, version: int, turn: int) -> Collected:
        collected = super().collect(version, turn)
        collected.metrics = self.gradient.compute(self.blocks[turn])
        for place, parameter in zip(self.gradients, self.parameters, strict=True):
            assert parameter.grad is not None
            place.copy_(parameter.grad)
        collected.finished_at = time.monotonic()
        return collected

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "gradient": self.gradient.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.gradient.load_state_dict(state["gradient"])
