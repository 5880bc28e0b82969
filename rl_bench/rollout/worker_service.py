"""Answers, inside a worker process, what is asked about rollouts: collect, save, restore."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rl_bench.rollout.blocks import Blocks
from rl_bench.rollout.weights import Weights
from rl_bench.rollout.worker import RolloutWorker
from rl_bench.types import EpisodeStats
from rl_bench.workers.main import CLOSE, Service


@dataclass
class Collected:
    """Tells about the steps that a worker has written.

    `metrics` are those of the gradient, where the worker computed one.
    """

    episodes: EpisodeStats
    version: int
    unfinished_episodes: int
    simulation_seconds: float
    inference_seconds: float
    finished_at: float  # on the machine's monotonic clock
    metrics: dict[str, float] = field(default_factory=dict)


class RolloutService:
    """Answers a worker's requests: `index` is its number, `blocks` is where it writes."""

    def __init__(self, worker: RolloutWorker, index: int, blocks: Blocks, weights: Weights) -> None:
        self.worker, self.weights = worker, weights
        self.blocks = [blocks.block(index, turn) for turn in range(blocks.turns)]

    def requests(self) -> Service:
        return {
            "collect": self.collect,
            "state": self.state,
            "load_state": self.load_state,
            CLOSE: self.worker.env.close,
        }

    def collect(self, version: int, turn: int) -> Collected:
        """Fill one of the blocks [T, B] with the weights of this version, or with the newest."""
        worker = self.worker
        worker.version = self.weights.read(self.take_weights, version=version)
        simulation, inference = worker.simulation_seconds, worker.inference_seconds
        episodes = worker.collect(self.blocks[turn])
        return Collected(
            episodes=episodes,
            version=worker.version,
            unfinished_episodes=worker.unfinished_episodes(),
            simulation_seconds=worker.simulation_seconds - simulation,
            inference_seconds=worker.inference_seconds - inference,
            finished_at=time.monotonic(),
        )

    def take_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Act with these weights from now on."""
        self.worker.policy.load_weights(weights)

    def state_dict(self) -> dict[str, Any]:
        return self.worker.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.worker.load_state_dict(state)

    def state(self) -> bytes:
        """Return the state as bytes: tensors would be sent through files of torch's own."""
        return serialise(self.state_dict())

    def load_state(self, state: bytes) -> None:
        """Take back what `state` gave."""
        self.load_state_dict(deserialise(state))


def serialise(state: Mapping[str, Any]) -> bytes:
    """Turn tensors, numbers and strings into bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def deserialise(state: bytes) -> dict[str, Any]:
    """Take back what `serialise` gave."""
    return torch.load(io.BytesIO(state), weights_only=True)
