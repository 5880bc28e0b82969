"""Computes the gradient of a minibatch: what an algorithm minimises, and where it is evaluated.

An objective knows one algorithm's loss; a `Gradient` knows where it is computed: here at once
(`LocalGradient`), or in shares by several processes (`training/sharding.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from rl_bench.config.resolved import ResolvedConfig
from rl_bench.nets.distributions import Distribution
from rl_bench.nets.executor import Executor
from rl_bench.types import Trajectory

Metrics = dict[str, float]
OutputGradients = tuple[torch.Tensor, torch.Tensor]  # of policy [M, P] and values [M]
# What an agent computes from a trajectory before its first minibatch, by name.
Prepared = Mapping[str, torch.Tensor]
WHOLE = slice(None)
# Rows that go through the network at once. More of them fall out of the caches.
MICROBATCH_ROWS = 512


class Microbatch(Protocol):
    """Rows that go through the network at once: those of `obs` [N, *] at `indices` [M]."""

    @property
    def obs(self) -> torch.Tensor:
        """Return observations [N, *]."""

    @property
    def indices(self) -> torch.Tensor:
        """Return which of them are evaluated [M]."""


class Objective(ABC):
    """The loss of a minibatch as a pure function of the network's outputs."""

    def __init__(self, distribution: Distribution, config: ResolvedConfig) -> None:
        self.distribution, self.config = distribution, config

    @abstractmethod
    def batch(self, trajectory: Trajectory, prepared: Prepared) -> Any:
        """Return what minibatches are taken from: views on the memory of the arguments."""

    @abstractmethod
    def microbatches(
        self, batch: Any, index: torch.Tensor, share: slice = WHOLE
    ) -> Iterator[tuple[Microbatch, float]]:
        """Cut the share of the minibatch `index` into microbatches, each with its weight.

        A weight is the part of the whole minibatch that the microbatch holds, so that gradients
        and metrics of all shares add up to those of the minibatch.
        """

    @abstractmethod
    def losses(
        self, rows: Any, policy: torch.Tensor, values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return all terms as means over a microbatch; `train/loss` is what is minimised.

        Shapes: policy [M, P], values [M]: the network's outputs for `rows`.
        """

    def native_loss(
        self, rows: Any, policy: torch.Tensor, values: torch.Tensor, weight: float
    ) -> tuple[OutputGradients, Metrics] | None:
        """Compute `losses` and its gradients, times `weight`, by native code; None: there is none.

        Optional. The gradients may be those of the first rows only, where others have none.
        """
        return None

    def microbatch_size(self) -> int:
        """Return how many of a minibatch's indices are worth computing at once."""
        return MICROBATCH_ROWS


def add_gradient(
    executor: Executor, objective: Objective, batch: Any, index: torch.Tensor, share: slice = WHOLE
) -> Metrics:
    """Add the gradient of a share of the minibatch `index` to the parameters; return metrics."""
    sums: Metrics = {}
    for rows, weight in objective.microbatches(batch, index, share):
        policy, values = executor.forward(rows.obs, rows.indices)
        found = None
        if executor.is_native:
            found = objective.native_loss(rows, policy, values, weight)
        if found is None:
            found = differentiate(objective, rows, policy, values, weight)
        gradients, metrics = found
        executor.backward(*gradients)
        add_metrics(sums, metrics, weight)
    return sums


def differentiate(
    objective: Objective, rows: Any, policy: torch.Tensor, values: torch.Tensor, weight: float
) -> tuple[OutputGradients, Metrics]:
    """Differentiate the loss with respect to the outputs by torch; gradients are times `weight`."""
    with torch.enable_grad():
        leaves = policy.detach().requires_grad_(), values.detach().requires_grad_()
        losses = objective.losses(rows, *leaves)
        (losses["train/loss"] * weight).backward()
    gradients = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    return (gradients[0], gradients[1]), {name: loss.item() for name, loss in losses.items()}


def add_metrics(sums: Metrics, more: Metrics, weight: float = 1.0) -> None:
    """Add `weight` times some metrics to what was summed so far."""
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + weight * value


class Gradient(Protocol):
    """Computes gradients of minibatches, here at once or in shares elsewhere."""

    def begin(self, trajectory: Trajectory, prepared: Prepared) -> None:
        """Take a new batch, of which minibatches follow."""

    def compute(self, index: torch.Tensor) -> Metrics:
        """Leave the gradient of the minibatch in the parameters; return its metrics."""


class LocalGradient:
    """Computes whole minibatches in this process, with all of its threads."""

    def __init__(self, executor: Executor, objective: Objective) -> None:
        self.executor, self.objective = executor, objective

    def begin(self, trajectory: Trajectory, prepared: Prepared) -> None:
        self.batch = self.objective.batch(trajectory, prepared)

    def compute(self, index: torch.Tensor) -> Metrics:
        return add_gradient(self.executor, self.objective, self.batch, index)
