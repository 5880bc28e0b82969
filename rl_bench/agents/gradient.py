"""The gradient of a minibatch: what an algorithm minimises, and who computes it.

An objective knows one algorithm's loss; a `Gradient` knows where it is evaluated: here at once
(`LocalGradient`), or in shares by several processes (`training/sharding.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.types import Trajectory

Metrics = dict[str, float]
# What an agent works out of a trajectory before its first minibatch, by name.
Prepared = Mapping[str, torch.Tensor]
WHOLE = slice(None)
# Rows that go through the network at once. More of them fall out of the caches.
PIECE_ROWS = 512


class Objective(Protocol):
    """The loss of a minibatch, or of a share of one."""

    net: ActorCritic

    def piece(self, batch: Any) -> int:
        """How many of a minibatch's indices are worth computing at once; fewer cost more each."""

    def batch(self, trajectory: Trajectory, prepared: Prepared) -> Any:
        """What the minibatches are taken from; views on the memory of its arguments."""

    def backward(self, batch: Any, index: torch.Tensor, share: slice = WHOLE) -> Metrics:
        """Add the gradient of a share of the minibatch `index` to the parameters.

        Each share weighs as much as it holds, so the gradients and the metrics of all shares add
        up to those of the minibatch.
        """


def add_gradient(objective: Any, batch: Any, weight: float) -> Metrics:
    """Add `weight` times the gradient of the loss of `batch`, natively where the network can.

    `batch` has observations, `obs`, and says which of them are `chosen`.
    `objective` has the loss twice: `losses` in terms of torch, which is the definition, and
    `native_loss`, which gives the gradients of policy and values, weighed already, with it.
    """
    net = objective.net
    if net.learns_natively:
        outputs = net.forward_to_learn(batch.obs, batch.chosen)
        gradients, metrics = objective.native_loss(batch, *outputs, weight)
        net.backward(*gradients)
        return {f"train/{name}": weight * value for name, value in metrics.items()}
    losses = objective.losses(batch)
    (losses["train/loss"] * weight).backward()
    return {name: loss.item() * weight for name, loss in losses.items()}


def add_metrics(sums: Metrics, more: Metrics) -> None:
    """Add metrics to what was summed so far."""
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


class Gradient(Protocol):
    """How the gradient of a minibatch is computed: here at once, or in shares elsewhere."""

    def begin(self, trajectory: Trajectory, prepared: Prepared) -> None:
        """A new batch, of which minibatches follow."""

    def of(self, index: torch.Tensor) -> Metrics:
        """Leave the gradient of the minibatch in the parameters; returns its metrics."""


class LocalGradient:
    """The whole minibatch in this process, with all of its threads."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def begin(self, trajectory: Trajectory, prepared: Prepared) -> None:
        self.batch = self.objective.batch(trajectory, prepared)

    def of(self, index: torch.Tensor) -> Metrics:
        return self.objective.backward(self.batch, index)
