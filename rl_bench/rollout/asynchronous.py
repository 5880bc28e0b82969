"""Collects in worker processes that run ahead: actors collect while the learner learns.

Each actor fills a block of shared memory with the newest weights it finds, and waits with the next
one until the learner takes it: that bounds memory and the age of what is learned. It has two
blocks, so that it can begin the next one while the learner copies the last. The learner takes as
many blocks as make a batch, whichever are finished first. Those that are too old by then are
dropped, and counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from rl_bench.rollout.backlog import Dropped, Finished
from rl_bench.rollout.blocks import Blocks
from rl_bench.rollout.weights import NEWEST, Weights
from rl_bench.rollout.worker_group import WorkerGroup
from rl_bench.rollout.worker_service import Collected
from rl_bench.types import Delivery, EpisodeStats, Trajectory
from rl_bench.workers.handle import WorkerLost


class AsynchronousSource:
    """N actors with two blocks each, and the learner's `batch` [T, B].

    A batch holds N blocks; a fast actor may give two, a slow one none. The blocks of an actor come
    in the order of time. `max_policy_lag` is the number of updates that the weights behind a block
    may be old when it is learned from.
    Raises: WorkerLost when an actor is lost and the group's budget is spent.
    """

    def __init__(
        self,
        group: WorkerGroup,
        blocks: Blocks,
        batch: Trajectory,
        weights: Weights,
        *,
        max_policy_lag: int,
        policy_update_frequency: int,
    ) -> None:
        assert blocks.turns == 2
        self.group, self.weights = group, weights
        self.trajectory = batch
        everyone, each = range(len(group)), batch.num_envs // len(group)
        self._places = [batch.columns(i * each, (i + 1) * each) for i in everyone]
        self._blocks = [[blocks.block(i, turn) for turn in range(2)] for i in everyone]
        self._turns = [0] * len(group)  # which of its blocks each writes, or has written
        self._max_policy_lag = max_policy_lag
        self._policy_update_frequency = policy_update_frequency
        self._updates = 0
        self._has_published = False
        self._waiting: set[int] = set()  # until their finished block is taken
        self._finished: deque[Finished] = deque()  # in the order of their ends
        self._taken: list[Finished] = []  # into a batch that is not complete
        self._dropped = Dropped()  # since the last batch that was complete

    @property
    def restarts(self) -> int:
        return self.group.restarts

    def next_batch(self) -> Trajectory:
        episodes, delivery = EpisodeStats(), Delivery()
        free = list(range(len(self.group)))  # places of the batch
        self._ask_those_without_work()
        while free:
            finished = self._next_finished(delivery)
            self._taken.append(finished)
            collected, block = finished.collected, finished.block
            assert (block.policy_version == collected.version).all(), "a block was not written"
            self._let_go_on(finished)
            if self._updates - collected.version > self._max_policy_lag:
                self._dropped.add(self._taken.pop())
                continue
            delivery.queue_ages.append(time.monotonic() - collected.finished_at)
            episodes.extend(collected.episodes)
            place = finished.worker if finished.worker in free else free[0]
            free.remove(place)
            self._places[place].copy_(block)
            self._taken[-1] = replace(finished, block=self._places[place])
        episodes.extend(self._dropped.episodes)
        delivery.dropped_timesteps = self._dropped.timesteps
        self._taken.clear()
        self._dropped = Dropped()
        self.trajectory.episodes, self.trajectory.delivery = episodes, delivery
        return self.trajectory

    def _let_go_on(self, finished: Finished) -> None:
        """Have the actor of a block that is being taken begin the next one, in its other block.

        No actor waits with a block that came out of a checkpoint.
        """
        actor = finished.worker
        if actor in self._waiting and finished.block is self._blocks[actor][self._turns[actor]]:
            self._waiting.remove(actor)
            self._turns[actor] ^= 1
            self._ask(actor)

    def _ask_those_without_work(self) -> None:
        """Ask actors that have just been made, or put in the place of one that was lost.

        Raises: what an environment raised while it was ahead, now that its block would be next.
        """
        for error in self.group.broken.values():
            raise error
        for actor in set(range(len(self.group))) - self.group.collecting - self._waiting:
            self._ask(actor)

    def _ask(self, actor: int) -> None:
        self.group.ask_to_collect(actor, NEWEST, turn=self._turns[actor])

    def _next_finished(self, delivery: Delivery) -> Finished:
        started = time.monotonic()
        while not self._finished:
            self._ask_those_without_work()
            try:
                self._note(self.group.next_collected())
            except WorkerLost as lost:
                self.group.replace(lost)
        delivery.learner_waiting_seconds += time.monotonic() - started
        self.idle()
        return self._finished.popleft()

    def _note(self, *replies: tuple[int, Collected]) -> None:
        for actor, collected in replies:
            self._waiting.add(actor)
            block = self._blocks[actor][self._turns[actor]]
            self._finished.append(Finished(actor, collected, block))

    def idle(self) -> Collection[int]:
        """Return the actors whose finished block was not taken yet: until then they wait."""
        self._note(*self.group.collected_so_far())
        return self._waiting

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Publish every `policy_update_frequency` updates; the first ones at once."""
        self._updates = version
        if not self._has_published or version % self._policy_update_frequency == 0:
            self.weights.publish(weights, version=version)
            self._has_published = True

    def unfinished_episodes(self) -> int:
        return self.group.unfinished_episodes()

    def timings(self) -> dict[str, float]:
        return self.group.timings()

    def worker_pids(self) -> list[int]:
        return self.group.pool.pids()

    def state_dict(self) -> dict[str, Any]:
        """Save once all have finished what they collect, with blocks that nobody learned from."""
        self._note(*self.group.let_all_finish())
        unlearned = [*self._taken, *self._finished]
        return {
            **self.group.state_dict(),
            "finished": [finished.state_dict() for finished in unlearned],
            "dropped": asdict(self._dropped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.group.load_state_dict(state)
        self._finished.extend(Finished.from_state(entry) for entry in state.get("finished", ()))
        self._dropped = Dropped.from_state(state.get("dropped"))

    def close(self) -> None:
        self.group.close()
