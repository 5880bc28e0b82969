"""The gradient of a minibatch in shares: one in the main process, the others in worker processes.

While the learner works, the workers that collect have nothing to do; here they take a share each,
on one thread. All read the learner's weights in shared memory, each writes its gradient into shared
memory of its own, and the learner adds them up, always in the same order, and takes the step. A
share is weighed by its rows, so the sum is the gradient of the whole minibatch (within rounding).

A worker that is lost in the middle of an update has its share computed by the learner.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rl_bench.agents.ppo import Batch, ClippedObjective, Metrics
from rl_bench.nets import ActorCritic
from rl_bench.rollout.processes import WorkerLost, WorkerPool
from rl_bench.rollout.serving import Service
from rl_bench.rollout.shared_memory import SharedTensors
from rl_bench.types import Trajectory

REQUEST = "gradient"


@dataclass
class SharedUpdate:
    """What learner and helpers see of an update, beside the trajectory.

    weights: the learner's parameters, the very ones its optimiser steps
    helpers: the workers that compute shares
    gradients: those of each helper, as `<worker>/<parameter>`
    batch: `advantages` and `returns` [N], and `index` [M]: the rows of the present minibatch
    """

    weights: SharedTensors
    helpers: tuple[int, ...]
    gradients: SharedTensors
    batch: SharedTensors

    @classmethod
    def allocate(
        cls, net: ActorCritic, *, num_rows: int, batch_size: int, helpers: Sequence[int]
    ) -> SharedUpdate:
        """Moves the parameters of `net` into shared memory."""
        parameters = {name: p.detach() for name, p in net.named_parameters()}
        batch = {
            "advantages": torch.empty(num_rows),
            "returns": torch.empty(num_rows),
            "index": torch.empty(batch_size, dtype=torch.int64),
        }
        shared = cls(
            weights=SharedTensors.like(parameters),
            helpers=tuple(helpers),
            gradients=SharedTensors.like(
                {f"{h}/{name}": p for h in helpers for name, p in parameters.items()}
            ),
            batch=SharedTensors.like(batch),
        )
        use_shared_weights(net, shared.weights)
        return shared

    def close(self) -> None:
        for tensors in (self.weights, self.gradients, self.batch):
            tensors.close()


def use_shared_weights(net: ActorCritic, weights: Mapping[str, torch.Tensor]) -> None:
    """Make the parameters of `net` views on `weights`."""
    for name, parameter in net.named_parameters():
        parameter.data = weights[name]


class GradientService:
    """What a worker process can be asked about the learner's minibatches."""

    def __init__(
        self, objective: ClippedObjective, trajectory: Trajectory, shared: SharedUpdate, worker: int
    ) -> None:
        use_shared_weights(objective.net, shared.weights)
        self.objective = objective
        self.index = shared.batch["index"]
        self.batch = Batch.of(trajectory, shared.batch["advantages"], shared.batch["returns"])
        self.gradients = [
            shared.gradients[f"{worker}/{n}"] for n, _ in objective.net.named_parameters()
        ]

    def requests(self) -> Service:
        return {REQUEST: self.gradient}

    def gradient(self, size: int, start: int, stop: int) -> Metrics:
        """Write the gradient of rows [start, stop) of a minibatch of `size`."""
        metrics = self.objective.backward(self.batch, self.index[:size], slice(start, stop))
        for parameter, shared in zip(self.objective.net.parameters(), self.gradients, strict=True):
            assert parameter.grad is not None
            shared.copy_(parameter.grad)
            parameter.grad = None
        return metrics


@dataclass
class ShardedGradient:
    """The learner's side: hand out the shares, compute one, add up the others.

    The workers of `pool` that help must not collect meanwhile.
    """

    objective: ClippedObjective
    pool: WorkerPool
    shared: SharedUpdate
    batch: Batch = field(init=False)

    def begin(self, batch: Batch) -> None:
        self.batch = batch
        self.shared.batch["advantages"].copy_(batch.advantages)
        self.shared.batch["returns"].copy_(batch.returns)

    def of(self, index: torch.Tensor) -> Metrics:
        self.shared.batch["index"][: len(index)] = index
        mine, *others = _split(len(index), 1 + len(self.shared.helpers))
        asked = [
            self._ask(helper, len(index), share)
            for helper, share in zip(self.shared.helpers, others, strict=True)
        ]
        metrics = self.objective.backward(self.batch, index, mine)
        for helper, share, was_asked in zip(self.shared.helpers, others, asked, strict=True):
            part = self._add_gradient_of(helper) if was_asked else None
            if part is None:
                part = self.objective.backward(self.batch, index, share)
            metrics = {name: value + part[name] for name, value in metrics.items()}
        return metrics

    def _ask(self, helper: int, size: int, share: slice) -> bool:
        try:
            self.pool.ask(helper, REQUEST, size, share.start, share.stop)
        except WorkerLost:
            return False
        return True

    def _add_gradient_of(self, helper: int) -> Metrics | None:
        """Its metrics; None when it was lost, and with it what it had computed."""
        try:
            _, metrics = self.pool.next_reply([helper])
        except WorkerLost:
            return None
        for name, parameter in self.objective.net.named_parameters():
            assert parameter.grad is not None
            parameter.grad.add_(self.shared.gradients[f"{helper}/{name}"])
        return metrics


def _split(size: int, parts: int) -> list[slice]:
    """Consecutive shares of nearly equal size."""
    bounds = [size * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
