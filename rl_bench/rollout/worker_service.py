"""What a worker process does about rollouts: take published weights, collect, save and restore."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rl_bench.errors import WorkerError
from rl_bench.rollout.worker import RolloutWorker
from rl_bench.types import EpisodeStats, Trajectory
from rl_bench.workers.main import CLOSE, Service
from rl_bench.workers.shared_memory import SharedTensors

VERSION = "version"
NOT_WHOLE = -1
NEWEST = -2
READING_SECONDS = 10.0


class PublishedWeights:
    """The acting policy's weights in shared memory, with the version they belong to.

    Of two sets the older one is overwritten, so that a reader of one version is not disturbed by
    the next. A set is marked as not whole while it is written: a torn read is noticed, never a
    silent mixture.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        marked = {VERSION: torch.tensor([NOT_WHOLE]), **weights}
        self._sets = [SharedTensors.like(marked) for _ in range(2)]

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Write a version, over the last but one."""
        target = min(self._sets, key=lambda shared: int(shared[VERSION]))
        target[VERSION].fill_(NOT_WHOLE)
        with torch.no_grad():
            for name, tensor in weights.items():
                target[name].copy_(tensor)
        target[VERSION].fill_(version)

    def load_into(self, worker: RolloutWorker, *, version: int = NEWEST) -> None:
        """Have a worker act with this version, or with the newest that it can read whole.

        Raises: WorkerError when it is not there, before or after reading.
        """
        deadline = time.monotonic() + READING_SECONDS
        while True:
            versions = [int(shared[VERSION]) for shared in self._sets]
            wanted = max(versions) if version == NEWEST else version
            if wanted in versions and wanted != NOT_WHOLE:
                source = self._sets[versions.index(wanted)]
                worker.policy.load_weights(source)
                worker.version = wanted
                if int(source[VERSION]) == wanted:
                    return
            # A reader of the newest that was overtaken twice while it read takes what is newer.
            if version != NEWEST or time.monotonic() > deadline:
                raise WorkerError(f"the weights of version {wanted} are not there, or not whole")

    def close(self) -> None:
        for shared in self._sets:
            shared.close()


@dataclass
class Collected:
    """What a worker says about the steps it has written."""

    episodes: EpisodeStats
    version: int
    unfinished_episodes: int
    simulation_seconds: float
    inference_seconds: float
    finished_at: float  # on the machine's monotonic clock


class RolloutService:
    """What a worker process can be asked about its environments."""

    def __init__(
        self, worker: RolloutWorker, blocks: Sequence[Trajectory], weights: PublishedWeights
    ) -> None:
        self.worker, self.blocks, self.weights = worker, blocks, weights

    def requests(self) -> Service:
        return {
            "collect": self.collect,
            "state": self.state,
            "load_state": self.load_state,
            CLOSE: self.worker.env.close,
        }

    def collect(self, version: int, block: int) -> Collected:
        """Fill one of the blocks [T, B] with the weights of this version, or with the newest."""
        worker = self.worker
        self.weights.load_into(worker, version=version)
        simulation, inference = worker.simulation_seconds, worker.inference_seconds
        episodes = worker.collect(self.blocks[block])
        return Collected(
            episodes=episodes,
            version=worker.version,
            unfinished_episodes=worker.unfinished_episodes(),
            simulation_seconds=worker.simulation_seconds - simulation,
            inference_seconds=worker.inference_seconds - inference,
            finished_at=time.monotonic(),
        )

    def state(self) -> bytes:
        """As bytes: tensors would be sent through shared memory files of torch's own."""
        return packed(self.worker.state_dict())

    def load_state(self, state: bytes) -> None:
        self.worker.load_state_dict(unpacked(state))


def packed(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(state: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(state), weights_only=True)
