"""Rollouts in worker processes, in lock-step: all collect with the newest weights, then all wait.

Worker i writes its steps in place into column block i of one trajectory in shared memory; only
versions, counts and finished episodes travel. Which memory may be written when follows from the
requests: the workers write between `collect` and its reply, the main process only while none does.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rl_bench.errors import RlBenchError, WorkerError
from rl_bench.rollout.processes import WorkerLost, WorkerPool
from rl_bench.rollout.serving import CLOSE, Factory, Service
from rl_bench.rollout.shared_memory import SharedTensors
from rl_bench.rollout.source import warn_without_snapshots
from rl_bench.rollout.worker import RolloutWorker
from rl_bench.types import EpisodeStats, Trajectory

logger = logging.getLogger(__name__)

VERSION = "version"
NOT_WHOLE = -1


class PublishedWeights:
    """The acting policy's weights in shared memory, with the version they belong to.

    Two sets take turns, so that a reader of one version is not disturbed by the next one. A set is
    marked as not whole while it is written: a torn read is an error, never a silent mixture.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        marked = {VERSION: torch.tensor([NOT_WHOLE]), **weights}
        self._sets = [SharedTensors.like(marked) for _ in range(2)]

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Write a version. The caller sees to it that no worker reads the last but one."""
        target = self._sets[version % 2]
        target[VERSION].fill_(NOT_WHOLE)
        with torch.no_grad():
            for name, tensor in weights.items():
                target[name].copy_(tensor)
        target[VERSION].fill_(version)

    def load_into(self, worker: RolloutWorker, *, version: int) -> None:
        """Raises: WorkerError when this version is not there, before or after reading."""
        source = self._sets[version % 2]
        before = int(source[VERSION])
        worker.policy.load_weights(source)
        worker.version = version
        if {before, int(source[VERSION])} != {version}:
            raise WorkerError(f"the weights of version {version} are not there, or not whole")

    def close(self) -> None:
        for shared in self._sets:
            shared.close()


@dataclass
class Collected:
    """What a worker says about the steps it has written."""

    episodes: EpisodeStats
    unfinished_episodes: int
    simulation_seconds: float
    inference_seconds: float


class RolloutService:
    """What a worker process can be asked about its environments."""

    def __init__(self, worker: RolloutWorker, block: Trajectory, weights: PublishedWeights) -> None:
        self.worker, self.block, self.weights = worker, block, weights

    def requests(self) -> Service:
        return {
            "collect": self.collect,
            "state": self.state,
            "load_state": self.load_state,
            CLOSE: self.worker.env.close,
        }

    def collect(self, version: int) -> Collected:
        """Fill the block [T, B] with the weights of this version."""
        worker = self.worker
        self.weights.load_into(worker, version=version)
        simulation, inference = worker.simulation_seconds, worker.inference_seconds
        episodes = worker.collect(self.block)
        return Collected(
            episodes=episodes,
            unfinished_episodes=worker.unfinished_episodes(),
            simulation_seconds=worker.simulation_seconds - simulation,
            inference_seconds=worker.inference_seconds - inference,
        )

    def state(self) -> bytes:
        """As bytes: tensors would be sent through shared memory files of torch's own."""
        return _packed(self.worker.state_dict())

    def load_state(self, state: bytes) -> None:
        self.worker.load_state_dict(_unpacked(state))


def _packed(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _unpacked(state: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(state), weights_only=True)


class ParallelSource:
    """N worker processes that fill one trajectory together.

    `memory` holds the trajectory. A worker that is lost is replaced, `restart_budget` times in all,
    by what `make_factory(index, restarts)` makes; its environments start anew.
    Raises: WorkerLost when the budget is spent.
    """

    def __init__(
        self,
        pool: WorkerPool,
        memory: SharedTensors,
        weights: PublishedWeights,
        make_factory: Callable[[int, int], Factory],
        *,
        restart_budget: int,
    ) -> None:
        self.pool, self.memory, self.weights = pool, memory, weights
        self.trajectory = Trajectory.of(memory)
        self.restarts = 0
        self._make_factory = make_factory
        self._budget = restart_budget
        self._version = 0
        self._unfinished = [0] * len(pool)
        self._seconds = {"simulation": 0.0, "inference": 0.0}

    def next_batch(self) -> Trajectory:
        everyone = range(len(self.pool))
        collected: dict[int, Collected] = {}
        for index in everyone:
            self._ask_to_collect(index, range(index))
        while len(collected) < len(everyone):
            collecting = set(everyone) - set(collected)
            try:
                index, reply = self.pool.next_reply(collecting)
            except WorkerLost as lost:
                self._replace(lost, collecting - {lost.worker})
                self._ask_to_collect(lost.worker, collecting - {lost.worker})
                continue
            collected[index] = reply
        self._account(collected)
        return self.trajectory

    def _ask_to_collect(self, index: int, collecting: Iterable[int]) -> None:
        while True:
            try:
                return self.pool.ask(index, "collect", self._version)
            except WorkerLost as lost:
                self._replace(lost, collecting)

    def _replace(self, lost: WorkerLost, collecting: Iterable[int]) -> None:
        while True:
            if self._budget == 0:
                self._let_finish(collecting)
                raise WorkerLost(lost.worker, f"{lost}; no restart is left") from lost
            self._budget -= 1
            self.restarts += 1
            try:
                self.pool.restart(lost.worker, self._make_factory(lost.worker, self.restarts))
            except WorkerLost as error:
                logger.warning("the replacement of worker %d: %s", lost.worker, error)
                lost = error
                continue
            except RlBenchError as error:
                self._let_finish(collecting)
                message = f"{lost}; its replacement did not start: {error}"
                raise WorkerLost(lost.worker, message) from error
            logger.warning(
                "worker %d was restarted, its environments start anew; restarts left: %d",
                lost.worker,
                self._budget,
            )
            return

    def _let_finish(self, collecting: Iterable[int]) -> None:
        """The run ends, but the others' environments are to be saved: they must answer first."""
        for index in collecting:
            with contextlib.suppress(RlBenchError):
                self.pool.next_reply([index])

    def _account(self, collected: Mapping[int, Collected]) -> None:
        """Merge in the order of the workers, never of arrival."""
        self.trajectory.episodes = EpisodeStats()
        assert (self.trajectory.policy_version == self._version).all(), "a block was not written"
        for index in range(len(self.pool)):
            reply = collected[index]
            self.trajectory.episodes.extend(reply.episodes)
            self._unfinished[index] = reply.unfinished_episodes
            self._seconds["simulation"] += reply.simulation_seconds / len(self.pool)
            self._seconds["inference"] += reply.inference_seconds / len(self.pool)

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        self.weights.publish(weights, version=version)
        self._version = version

    def unfinished_episodes(self) -> int:
        return sum(self._unfinished)

    def timings(self) -> dict[str, float]:
        return dict(self._seconds)

    def worker_pids(self) -> list[int]:
        return self.pool.pids()

    def state_dict(self) -> dict[str, Any]:
        """A lost worker has no state: a resume starts its environments anew."""
        asked = [self._ask_for_state(index) for index in range(len(self.pool))]
        return {
            "workers": [
                self._state_of(i) if was_asked else None for i, was_asked in enumerate(asked)
            ],
            "restarts": self.restarts,
            "worker_seconds": dict(self._seconds),
            "unfinished": list(self._unfinished),
        }

    def _ask_for_state(self, index: int) -> bool:
        try:
            self.pool.ask(index, "state")
        except WorkerLost:
            return False
        return True

    def _state_of(self, index: int) -> dict[str, Any] | None:
        try:
            _, state = self.pool.next_reply([index])
        except WorkerLost:
            return None
        return _unpacked(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for index, saved in enumerate(state["workers"]):
            if saved is not None:
                self.pool.ask(index, "load_state", _packed(saved))
                self.pool.next_reply([index])
        warn_without_snapshots(state["workers"])
        self.restarts = state["restarts"]
        self._seconds = dict(state["worker_seconds"])
        self._unfinished = list(state["unfinished"])

    def close(self) -> None:
        self.pool.close()
        for shared in (self.memory, self.weights):
            shared.close()
