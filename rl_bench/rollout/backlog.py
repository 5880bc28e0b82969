"""Keeps rollouts that are finished and not learned from, and counts those that never will be."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rl_bench.rollout.worker_service import Collected
from rl_bench.types import EpisodeStats, Trajectory


@dataclass
class Finished:
    """A block that a worker has finished and nobody has learned from."""

    worker: int
    collected: Collected
    block: Trajectory

    def state_dict(self) -> dict[str, Any]:
        """Copy the tensors: saving a view would save all that it is a view of."""
        tensors = {name: tensor.clone() for name, tensor in self.block.tensors().items()}
        return {"actor": self.worker, "collected": asdict(self.collected), "block": tensors}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Finished:
        """Restore a block; it counts as finished now."""
        collected = dict(state["collected"])
        collected["episodes"] = EpisodeStats(**collected["episodes"])
        collected["finished_at"] = time.monotonic()
        block = Trajectory.from_tensors(state["block"])
        return cls(state["actor"], Collected(**collected), block)


@dataclass
class Dropped:
    """Rollouts that will not be learned from; their episodes count all the same."""

    timesteps: int = 0
    episodes: EpisodeStats = field(default_factory=EpisodeStats)

    def add(self, finished: Finished) -> None:
        """Count a block as dropped."""
        self.timesteps += finished.block.timesteps
        self.episodes.extend(finished.collected.episodes)

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> Dropped:
        """Restore what `dataclasses.asdict` gave; None: nothing was dropped."""
        if state is None:
            return cls()
        return cls(state["timesteps"], EpisodeStats(**state["episodes"]))
