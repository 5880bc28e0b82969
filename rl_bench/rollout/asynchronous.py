"""Rollouts in worker processes that run ahead: actors collect while the learner learns.

Each actor fills a block of shared memory with the newest weights it finds, and waits with the next
one until the learner takes it: that bounds memory and the age of what is learned. It has two
blocks, so that it can begin the next one while the learner copies the last. The learner takes as
many blocks as make a batch, whichever are finished first. Those that are too old by then are
dropped, and counted.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from rl_bench.errors import RlBenchError
from rl_bench.rollout.worker_group import Crew
from rl_bench.rollout.worker_service import NEWEST, Collected, PublishedWeights
from rl_bench.types import Delivery, EpisodeStats, Trajectory
from rl_bench.workers.handle import WorkerLost

logger = logging.getLogger(__name__)


@dataclass
class Finished:
    """A block that an actor has finished and nobody has learned from."""

    actor: int
    collected: Collected
    block: Trajectory


@dataclass
class Dropped:
    """What was collected and will not be learned from; its episodes count all the same."""

    timesteps: int = 0
    episodes: EpisodeStats = field(default_factory=EpisodeStats)

    def add(self, finished: Finished) -> None:
        self.timesteps += finished.block.timesteps
        self.episodes.extend(finished.collected.episodes)

    @classmethod
    def of(cls, saved: Mapping[str, Any] | None) -> Dropped:
        if saved is None:
            return cls()
        return cls(saved["timesteps"], EpisodeStats(**saved["episodes"]))


class ActorSource:
    """N actors with their columns of both `blocks` [T, B], and the learner's `batch` [T, B].

    A batch holds N blocks; a fast actor may give two, a slow one none. The blocks of an actor come
    in the order of time. `max_policy_lag` is the number of updates that the weights behind a block
    may be old when it is learned from.
    Raises: WorkerLost when an actor is lost and the crew's budget is spent.
    """

    def __init__(
        self,
        crew: Crew,
        blocks: Sequence[Trajectory],
        batch: Trajectory,
        weights: PublishedWeights,
        *,
        max_policy_lag: int,
        policy_update_frequency: int,
    ) -> None:
        self.crew, self.weights = crew, weights
        self.trajectory = batch
        each = batch.num_envs // len(crew)
        places = [slice(i * each, (i + 1) * each) for i in range(len(crew))]
        self._places = [batch.columns(place.start, place.stop) for place in places]
        self._blocks = [[b.columns(p.start, p.stop) for b in blocks] for p in places]
        self._turns = [0] * len(crew)  # which of its blocks each writes, or has written
        self._max_policy_lag = max_policy_lag
        self._policy_update_frequency = policy_update_frequency
        self._updates = 0
        self._has_published = False
        self._collecting: set[int] = set()
        self._waiting: set[int] = set()  # until their finished block is taken
        self._finished: deque[Finished] = deque()  # in the order of their ends
        self._taken: list[Finished] = []  # into a batch that is not complete
        self._dropped = Dropped()  # since the last batch that was complete
        self._broken: dict[int, RlBenchError] = {}  # what an environment raised ahead

    @property
    def restarts(self) -> int:
        return self.crew.restarts

    def next_batch(self) -> Trajectory:
        episodes, delivery = EpisodeStats(), Delivery()
        free = list(range(len(self.crew)))  # places of the batch
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
            place = finished.actor if finished.actor in free else free[0]
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
        """Its block is being taken: its actor can begin the next one in the other.

        A block that came out of a checkpoint is none that an actor waits with.
        """
        actor = finished.actor
        if actor in self._waiting and finished.block is self._blocks[actor][self._turns[actor]]:
            self._waiting.remove(actor)
            self._turns[actor] ^= 1
            self._ask(actor)

    def _ask_those_without_work(self) -> None:
        """They have just been made, or put in the place of one that was lost meanwhile.

        Raises: what an environment raised while it was ahead, now that its block would be next.
        """
        for error in self._broken.values():
            raise error
        for actor in set(range(len(self.crew))) - self._collecting - self._waiting:
            self._ask(actor)

    def _ask(self, actor: int) -> None:
        self.crew.ask_to_collect(actor, NEWEST, block=self._turns[actor])
        self._collecting.add(actor)

    def _next_finished(self, delivery: Delivery) -> Finished:
        started = time.monotonic()
        while not self._finished:
            self._ask_those_without_work()
            try:
                self._note(self.crew.next_collected(self._collecting))
            except WorkerLost as lost:
                self._collecting.discard(lost.worker)
                self.crew.replace(lost)
        delivery.learner_waiting_seconds += time.monotonic() - started
        self.idle()
        return self._finished.popleft()

    def _note(self, *replies: tuple[int, Collected]) -> None:
        for actor, collected in sorted(replies, key=lambda reply: reply[1].finished_at):
            self._collecting.remove(actor)
            self._waiting.add(actor)
            block = self._blocks[actor][self._turns[actor]]
            self._finished.append(Finished(actor, collected, block))

    def idle(self) -> Collection[int]:
        """Actors that have nothing to collect into until their finished block is taken."""
        self._take_replies(self.crew.collected_by_now)
        return self._waiting

    def _take_replies(
        self, reply_of: Callable[[Collection[int]], tuple[int, Collected] | None]
    ) -> None:
        """One reply of each that is collecting, if it has one; what it raised is kept for later."""
        replies: list[tuple[int, Collected]] = []
        for actor in sorted(self._collecting):
            try:
                reply = reply_of([actor])
            except WorkerLost:  # it is replaced before the next batch
                self._collecting.discard(actor)
            except RlBenchError as error:
                self._collecting.discard(actor)
                self._broken[actor] = error
            else:
                replies += [reply] if reply else []
        self._note(*replies)

    def publish(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Every `policy_update_frequency` updates; the first ones at once."""
        self._updates = version
        if not self._has_published or version % self._policy_update_frequency == 0:
            self.weights.publish(weights, version=version)
            self._has_published = True

    def unfinished_episodes(self) -> int:
        return self.crew.unfinished_episodes()

    def timings(self) -> dict[str, float]:
        return self.crew.timings()

    def worker_pids(self) -> list[int]:
        return self.crew.pool.pids()

    def state_dict(self) -> dict[str, Any]:
        """Once all have finished what they collect, with the blocks that nobody learned from."""
        self._take_replies(self.crew.next_collected)
        for actor, error in self._broken.items():
            logger.warning("the environments of worker %d cannot be saved: %s", actor, error)
        unlearned = [*self._taken, *self._finished]
        return {
            **self.crew.state_dict(without=self._broken),
            "finished": [_packed(finished) for finished in unlearned],
            "dropped": asdict(self._dropped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.crew.load_state_dict(state)
        self._finished.extend(unpacked_block(entry) for entry in state.get("finished", ()))
        self._dropped = Dropped.of(state.get("dropped"))

    def close(self) -> None:
        self.crew.close()


def _packed(finished: Finished) -> dict[str, Any]:
    """Copies of the tensors: saving a view would save all that it is a view of."""
    tensors = {name: tensor.clone() for name, tensor in finished.block.tensors().items()}
    return {"actor": finished.actor, "collected": asdict(finished.collected), "block": tensors}


def unpacked_block(entry: Mapping[str, Any]) -> Finished:
    collected = dict(entry["collected"])
    collected["episodes"] = EpisodeStats(**collected["episodes"])
    collected["finished_at"] = time.monotonic()
    return Finished(entry["actor"], Collected(**collected), Trajectory.of(entry["block"]))
