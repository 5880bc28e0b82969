"""Holds the memory that workers write their rollouts to and the learner reads them from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rl_bench.types import Trajectory
from rl_bench.workers.shared_memory import SharedTensors


class Blocks(Protocol):
    """N workers' blocks [T, B / N]; each worker has `turns` of them, which it fills in turn."""

    turns: int

    def block(self, worker: int, turn: int = 0) -> Trajectory:
        """Return the block of a worker: worker i has the i-th share of the environments."""


class SharedBlocks:
    """Blocks as columns of trajectories [T, B] in shared memory, one for each turn."""

    def __init__(self, memory: Sequence[SharedTensors], num_workers: int) -> None:
        self._memory, self._num_workers = memory, num_workers
        self.turns = len(memory)

    def block(self, worker: int, turn: int = 0) -> Trajectory:
        whole = Trajectory.from_tensors(self._memory[turn])
        each = whole.num_envs // self._num_workers
        return whole.columns(worker * each, (worker + 1) * each)
