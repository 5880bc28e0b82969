"""The gradient of a minibatch: what an algorithm minimises, and who computes it.

An objective knows one algorithm's loss; a `Gradient` knows where it is evaluated: here at once
(`LocalGradient`), or in shares by several processes (`training/sharding.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from rl_bench.nets import ActorCritic
from rl_bench.types import Trajectory

Metrics = dict[str, float]
# What an agent works out of a trajectory before its first minibatch, by name.
Prepared = Mapping[str, torch.Tensor]
WHOLE = slice(None)
# Rows that go through the network at once. More of them fall out of the caches.
PIECE_ROWS = 512


@dataclass
class Batch:
    """A trajectory without its time axis: N = T × B rows (M for a minibatch).

    `log_probs` and `values` are those of the policy that acted; `returns` are what values are to
    become.
    """

    obs: torch.Tensor
    actions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    @classmethod
    def of(cls, trajectory: Trajectory, prepared: Prepared) -> Batch:
        """Views on the memory of both; what is prepared is flat already."""
        return cls(
            obs=trajectory.obs[:-1].flatten(0, 1),
            actions=trajectory.actions.flatten(0, 1),
            log_probs=trajectory.behaviour_log_probs.flatten(),
            values=trajectory.behaviour_values[:-1].flatten(),
            advantages=prepared["advantages"],
            returns=prepared["returns"],
        )

    def rows(self, index: torch.Tensor) -> Batch:
        # index_select copies whole frames; indexing with [] would go pixel by pixel (4 × slower).
        return Batch(**{name: tensor.index_select(0, index) for name, tensor in vars(self).items()})


class Objective(Protocol):
    """The loss of a minibatch, or of a share of one."""

    net: ActorCritic

    def backward(self, batch: Batch, index: torch.Tensor, share: slice = WHOLE) -> Metrics:
        """Add the gradient of the rows `index[share]` of a minibatch to the parameters.

        Each share weighs as much as it has rows, so the gradients and the metrics of all shares
        add up to those of the minibatch.
        """


def normalise(advantages: torch.Tensor, *, of: torch.Tensor, floor: float) -> torch.Tensor:
    """To mean 0 and deviation 1 of the whole minibatch, whatever share of it these are.

    Where no reward was seen, advantages are noise of the value function: the floor keeps it from
    being blown up to the size of a signal.
    """
    return (advantages - of.mean()) / (of.std().clamp(min=floor) + 1e-8)


def backward_share(losses: Mapping[str, torch.Tensor], weight: float) -> Metrics:
    """Backward of a share's loss, which is a mean over the share; returns its metrics."""
    (losses["train/loss"] * weight).backward()
    return {name: loss.item() * weight for name, loss in losses.items()}


def split_evenly(size: int, parts: int) -> list[slice]:
    """Consecutive shares of nearly equal size."""
    bounds = [size * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


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
        self.batch = Batch.of(trajectory, prepared)

    def of(self, index: torch.Tensor) -> Metrics:
        return self.objective.backward(self.batch, index)
