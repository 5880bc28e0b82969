"""Computes a minibatch's gradient in shares: some in the main process, others in workers.

While the learner works, workers that have nothing to collect compute shares, on one thread each.
All read the learner's weights in shared memory, each writes its gradient into shared memory of its
own, and the learner adds them up and takes the step. A share is weighted by what it holds, so the
sum is the gradient of the whole minibatch (within rounding).

The share of a worker that is lost within an update is computed by another, or by the learner.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rl_bench.agents.gradient import Metrics, Objective, Prepared, add_gradient, add_metrics
from rl_bench.agents.optimisers import gradients_of
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.executor import Executor
from rl_bench.types import Trajectory
from rl_bench.workers.handle import WorkerLost
from rl_bench.workers.main import Service
from rl_bench.workers.pool import WorkerPool
from rl_bench.workers.shared_memory import SharedTensors

REQUEST = "gradient"


@dataclass
class SharedUpdate:
    """Holds what the learner and its helpers share in an update, beside the trajectory.

    weights: the learner's parameters, the very ones its optimiser steps, and its buffers
    helpers: the workers that compute shares
    gradients: those of each helper, as `<worker>/<parameter>`
    prepared: what the agent has computed from the trajectory, by name
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
        """Move the weights of `net` into shared memory; `prepared` gives shapes only."""
        parameters = {name: p.detach() for name, p in net.named_parameters()}
        shared = cls(
            weights=SharedTensors.like({**parameters, **dict(net.named_buffers())}),
            helpers=tuple(helpers),
            gradients=SharedTensors.like(
                {f"{h}/{name}": p for h in helpers for name, p in parameters.items()}
            ),
            prepared=SharedTensors.like(prepared),
            index=SharedTensors.like({"index": torch.empty(index_size, dtype=torch.int64)}),
        )
        use_shared_weights(net, shared.weights)
        return shared

    def gradients_of(self, net: ActorCritic, helper: int) -> list[torch.Tensor]:
        """Return where a helper writes gradients, in the order of the network's parameters."""
        return [self.gradients[f"{helper}/{name}"] for name, _ in net.named_parameters()]

    def close(self) -> None:
        for tensors in (self.weights, self.gradients, self.prepared, self.index):
            tensors.close()


def use_shared_weights(net: ActorCritic, weights: Mapping[str, torch.Tensor]) -> None:
    """Make the parameters and buffers of `net` views on `weights`."""
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        tensor.data = weights[name]


class GradientService:
    """Computes shares of the learner's minibatches in a worker process, when asked."""

    def __init__(
        self,
        executor: Executor,
        objective: Objective,
        trajectory: Trajectory,
        shared: SharedUpdate,
        worker: int,
    ) -> None:
        use_shared_weights(executor.net, shared.weights)
        self.executor, self.objective = executor, objective
        self.index = shared.index["index"]
        self.batch = objective.batch(trajectory, shared.prepared)
        self.parameters = [*executor.net.parameters()]
        self.gradients = shared.gradients_of(executor.net, worker)

    def requests(self) -> Service:
        return {REQUEST: self.gradient}

    def gradient(self, size: int, start: int, stop: int) -> Metrics:
        """Write the gradient of [start, stop) of a minibatch of `size`."""
        index, share = self.index[:size], slice(start, stop)
        metrics = add_gradient(self.executor, self.objective, self.batch, index, share)
        torch._foreach_copy_(self.gradients, gradients_of(self.parameters))
        for parameter in self.parameters:
            parameter.grad = None
        return metrics


@dataclass
class ShardedGradient:
    """Computes a minibatch's gradient on the learner's side: hands out shares, adds them up.

    `idle` says which workers of `pool` may be asked now; they must not be asked for anything else
    before the minibatch is done. What is left is split among those who are free: a helper, with its
    one thread, gets as much as each of the learner's `learner_threads`. With `finely`, for helpers
    that come and go, a thread gets no more than a microbatch, so that nobody waits long for the
    others. Without it, and with the same helpers always free, the shares and the order of their sum
    are always the same.
    """

    executor: Executor
    objective: Objective
    pool: WorkerPool
    shared: SharedUpdate
    idle: Callable[[], Collection[int]]
    finely: bool = False
    learner_threads: int = 1
    batch: Any = field(init=False)
    parameters: list[torch.Tensor] = field(init=False)
    theirs: dict[int, list[torch.Tensor]] = field(init=False)  # gradients, by helper
    lost: set[int] = field(init=False)

    def begin(self, trajectory: Trajectory, prepared: Prepared) -> None:
        net, shared = self.executor.net, self.shared
        self.parameters = [*net.parameters()]
        self.theirs = {helper: shared.gradients_of(net, helper) for helper in shared.helpers}
        self.lost = set()  # those of the update before were replaced
        self.batch = self.objective.batch(trajectory, prepared)
        for name, tensor in prepared.items():
            self.shared.prepared[name].copy_(tensor)

    def compute(self, index: torch.Tensor) -> Metrics:
        self.shared.index["index"][: len(index)] = index
        metrics: Metrics = {}
        left = [slice(0, len(index))]
        asked: dict[int, slice] = {}
        while left or asked:
            while left:
                mine = self._hand_out(left, asked, len(index))
                own = add_gradient(self.executor, self.objective, self.batch, index, mine)
                add_metrics(metrics, own)
                if left:
                    self._take_in(asked, left, metrics, wait=False)
            self._take_in(asked, left, metrics, wait=True)
        return metrics

    def _hand_out(self, left: list[slice], asked: dict[int, slice], size: int) -> slice:
        """Give free helpers shares of the last range that is left; return the learner's own."""
        able = set(self.idle()).intersection(self.shared.helpers).difference(self.lost)
        free = sorted(able.difference(asked))
        whole = left.pop()
        length = whole.stop - whole.start
        largest = self.objective.microbatch_size() if self.finely else length
        count = max(self.learner_threads + len(free), math.ceil(length / largest))
        shares = [
            slice(whole.start + share.start, whole.start + share.stop)
            for share in split_evenly(length, min(count, length))
        ]
        own = min(self.learner_threads, max(1, len(shares) - len(free)))
        mine = slice(shares[0].start, shares[own - 1].stop)
        rest = deque(shares[own:])
        for helper in free[: len(rest)]:
            share = rest.popleft()
            try:
                self.pool.ask(helper, REQUEST, size, share.start, share.stop)
                asked[helper] = share
            except WorkerLost:
                self.lost.add(helper)
                left.append(share)
        if rest:
            left.append(slice(rest[0].start, rest[-1].stop))
        return mine

    def _take_in(
        self, asked: dict[int, slice], left: list[slice], metrics: Metrics, *, wait: bool
    ) -> None:
        """Add what helpers have computed; put the shares of lost helpers back into `left`."""
        for helper in sorted(asked):
            try:
                reply = (self.pool.next_reply if wait else self.pool.reply_by_now)([helper])
            except WorkerLost:
                self.lost.add(helper)
                left.append(asked.pop(helper))
                continue
            if reply is None:
                continue
            del asked[helper]
            add_metrics(metrics, reply[1])
            torch._foreach_add_(gradients_of(self.parameters), self.theirs[helper])


def split_evenly(size: int, parts: int) -> list[slice]:
    """Split `size` into consecutive shares of nearly equal size."""
    bounds = [size * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
