"""Publishes weights from the learner to whoever acts with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from rl_bench.errors import WorkerError
from rl_bench.workers.shared_memory import SharedTensors

VERSION = "version"
NOT_WHOLE = -1
NEWEST = -2
READING_SECONDS = 10.0


class Weights(Protocol):
    """Versions of a network's weights: one process writes them, others read them whole."""

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Make a version available; `version` is the number of updates behind it."""

    def read(
        self, take: Callable[[Mapping[str, torch.Tensor]], None], *, version: int = NEWEST
    ) -> int:
        """Have `take` copy this version, or the newest that is whole; return its number.

        `take` may be called again with a newer one, where the first was overwritten meanwhile.
        Raises: WorkerError when the version is not there, before or after reading.
        """

    def close(self) -> None:
        """Free the memory; may be called twice."""


class SharedWeights:
    """Keeps weights in shared memory, with the version they belong to.

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

    def read(
        self, take: Callable[[Mapping[str, torch.Tensor]], None], *, version: int = NEWEST
    ) -> int:
        deadline = time.monotonic() + READING_SECONDS
        while True:
            versions = [int(shared[VERSION]) for shared in self._sets]
            wanted = max(versions) if version == NEWEST else version
            if wanted in versions and wanted != NOT_WHOLE:
                source = self._sets[versions.index(wanted)]
                take(source)
                if int(source[VERSION]) == wanted:
                    return wanted
            # A reader of the newest that was overtaken twice while it read takes what is newer.
            if version != NEWEST or time.monotonic() > deadline:
                raise WorkerError(f"the weights of version {wanted} are not there, or not whole")

    def close(self) -> None:
        for shared in self._sets:
            shared.close()
