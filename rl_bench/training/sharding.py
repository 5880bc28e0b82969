"""The gradient of a minibatch in shares: some in the main process, others in worker processes.

While the learner works, workers that have nothing to collect take shares, on one thread. All read
the learner's weights in shared memory, each writes its gradient into shared memory of its own, and
the learner adds them up and takes the step. A share is weighed by what it holds, so the sum is the
gradient of the whole minibatch (within rounding).

A worker that is lost in the middle of an update has its share computed by the learner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rl_bench.agents.gradient import Metrics, Objective, Prepared, split_evenly
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
    prepared: what the agent worked out of the trajectory, by name
    index: `index` [M] of the present minibatch
    """

    weights: SharedTensors
    helpers: tuple[int, ...]
    gradients: SharedTensors
    prepared: SharedTensors
    index: SharedTensors

    @classmethod
    def allocate(
        cls, net: ActorCritic, *, prepared: Prepared, index_size: int, helpers: Sequence[int]
    ) -> SharedUpdate:
        """Moves the parameters of `net` into shared memory; `prepared` gives shapes only."""
        parameters = {name: p.detach() for name, p in net.named_parameters()}
        shared = cls(
            weights=SharedTensors.like(parameters),
            helpers=tuple(helpers),
            gradients=SharedTensors.like(
                {f"{h}/{name}": p for h in helpers for name, p in parameters.items()}
            ),
            prepared=SharedTensors.like(prepared),
            index=SharedTensors.like({"index": torch.empty(index_size, dtype=torch.int64)}),
        )
        use_shared_weights(net, shared.weights)
        return shared

    def close(self) -> None:
        for tensors in (self.weights, self.gradients, self.prepared, self.index):
            tensors.close()


def use_shared_weights(net: ActorCritic, weights: Mapping[str, torch.Tensor]) -> None:
    """Make the parameters of `net` views on `weights`."""
    for name, parameter in net.named_parameters():
        parameter.data = weights[name]


class GradientService:
    """What a worker process can be asked about the learner's minibatches."""

    def __init__(
        self, objective: Objective, trajectory: Trajectory, shared: SharedUpdate, worker: int
    ) -> None:
        use_shared_weights(objective.net, shared.weights)
        self.objective = objective
        self.index = shared.index["index"]
        self.batch = objective.batch(trajectory, shared.prepared)
        self.gradients = [
            shared.gradients[f"{worker}/{n}"] for n, _ in objective.net.named_parameters()
        ]

    def requests(self) -> Service:
        return {REQUEST: self.gradient}

    def gradient(self, size: int, start: int, stop: int) -> Metrics:
        """Write the gradient of [start, stop) of a minibatch of `size`."""
        metrics = self.objective.backward(self.batch, self.index[:size], slice(start, stop))
        for parameter, shared in zip(self.objective.net.parameters(), self.gradients, strict=True):
            assert parameter.grad is not None
            shared.copy_(parameter.grad)
            parameter.grad = None
        return metrics


@dataclass
class ShardedGradient:
    """The learner's side: hand out shares, compute the others, add them up.

    `idle` says which workers of `pool` may be asked now; they must not be asked for anything else
    before the minibatch is done. A minibatch has `most_shares` shares, or as many as it can be
    split into. Where it has one for each of the same workers every time, sums have a fixed order.
    """

    objective: Objective
    pool: WorkerPool
    shared: SharedUpdate
    idle: Callable[[], Collection[int]]
    most_shares: int
    batch: Any = field(init=False)

    def begin(self, trajectory: Trajectory, prepared: Prepared) -> None:
        self.batch = self.objective.batch(trajectory, prepared)
        for name, tensor in prepared.items():
            self.shared.prepared[name].copy_(tensor)

    def of(self, index: torch.Tensor) -> Metrics:
        self.shared.index["index"][: len(index)] = index
        mine, *others = split_evenly(len(index), min(self.most_shares, len(index)))
        left = deque(others)
        asked: dict[int, slice] = {}
        self._hand_out(left, asked, len(index))
        metrics = self.objective.backward(self.batch, index, mine)
        while left:
            self._take_in(asked, left, metrics, wait=False)
            self._hand_out(left, asked, len(index))
            if left:
                _add(metrics, self.objective.backward(self.batch, index, left.popleft()))
        self._take_in(asked, left, metrics, wait=True)
        while left:  # those of workers that were lost
            _add(metrics, self.objective.backward(self.batch, index, left.popleft()))
        return metrics

    def _hand_out(self, left: deque[slice], asked: dict[int, slice], size: int) -> None:
        """One share to each helper that has none."""
        for helper in sorted(set(self.idle()).intersection(self.shared.helpers).difference(asked)):
            if not left:
                return
            share = left.popleft()
            try:
                self.pool.ask(helper, REQUEST, size, share.start, share.stop)
                asked[helper] = share
            except WorkerLost:
                left.append(share)

    def _take_in(
        self, asked: dict[int, slice], left: deque[slice], metrics: Metrics, *, wait: bool
    ) -> None:
        """Add what helpers have computed; what was lost with one of them is left to do again."""
        for helper in sorted(asked):
            try:
                reply = (self.pool.next_reply if wait else self.pool.reply_by_now)([helper])
            except WorkerLost:
                left.append(asked.pop(helper))
                continue
            if reply is None:
                continue
            del asked[helper]
            _add(metrics, reply[1])
            for name, parameter in self.objective.net.named_parameters():
                assert parameter.grad is not None
                parameter.grad.add_(self.shared.gradients[f"{helper}/{name}"])


def _add(metrics: Metrics, more: Metrics) -> None:
    for name, value in more.items():
        metrics[name] += value
