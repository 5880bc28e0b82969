"""Defines what the training loop asks of whoever collects rollouts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch

from rl_bench.types import Trajectory

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Collects trajectories with published weights, in this process or in others."""

    @property
    def restarts(self) -> int:
        """Return how many worker processes were lost and replaced so far."""

    def next_batch(self) -> Trajectory:
        """Collect the next trajectory; its memory is reused, so it is valid until the next call.

        Raises: WorkerError.
        """

    def idle(self) -> Collection[int]:
        """Return the workers that have nothing to collect now, and could compute shares."""

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Have rollouts act with the weights of update `version` as soon as the source allows."""

    def unfinished_episodes(self) -> int:
        """Count episodes that have begun and not ended."""

    def timings(self) -> dict[str, float]:
        """Return seconds of `simulation`, `inference` and `waiting`, per worker on average."""

    def worker_pids(self) -> list[int]:
        """Return the processes that collect, apart from this one."""

    def state_dict(self) -> dict[str, Any]:
        """Save environments, episode accumulators and random states.

        Also after `next_batch` has raised: whoever was lost or raised then has no state, and a
        resume starts its environments anew.
        """

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
