"""What the training loop asks of whoever collects rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from rl_bench.types import Trajectory


class Source(Protocol):
    """Collects trajectories with published weights, in this process or in others."""

    def next_batch(self) -> Trajectory:
        """The next trajectory; its memory is reused, so it is valid until the next call.

        Raises: WorkerError.
        """

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Act with these weights from the next batch on."""

    def unfinished_episodes(self) -> int:
        """Episodes that have begun and not ended."""

    def timings(self) -> dict[str, float]:
        """Seconds spent in `simulation` and `inference` so far, per worker on average."""

    def state_dict(self) -> dict[str, Any]:
        """Environments, episode accumulators and random states."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def close(self) -> None:
        """Free everything; may be called twice."""
