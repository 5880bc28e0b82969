"""What the training loop asks of whoever collects rollouts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from rl_bench.types import Trajectory

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Collects trajectories with published weights, in this process or in others."""

    @property
    def restarts(self) -> int:
        """Worker processes that were lost and replaced so far."""

    def next_batch(self) -> Trajectory:
        """The next trajectory; its memory is reused, so it is valid until the next call.

        Raises: WorkerError.
        """

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """After update `version`: act with these weights as soon as the source allows."""

    def unfinished_episodes(self) -> int:
        """Episodes that have begun and not ended."""

    def timings(self) -> dict[str, float]:
        """Seconds of `simulation`, `inference` and `waiting` so far, per worker on average."""

    def worker_pids(self) -> list[int]:
        """Processes that collect, apart from this one."""

    def state_dict(self) -> dict[str, Any]:
        """Environments, episode accumulators and random states."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def close(self) -> None:
        """Free everything; may be called twice."""


def warn_without_snapshots(workers: Sequence[Mapping[str, Any] | None]) -> None:
    """Say so when workers' environments cannot go on where they were."""
    if any(worker is None or worker["env_states"] is None for worker in workers):
        logger.warning(
            "not every environment left a snapshot: their episodes start anew, "
            "so the resumed run is not bit-exact"
        )
