"""Keeps a group of worker processes collecting: asks them, replaces the lost, saves and restores.

Both ways of collecting with workers share it (`lockstep.py`, `asynchronous.py`), and A3C's workers,
which also compute gradients (`gradients.py`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from rl_bench.errors import RlBenchError
from rl_bench.rollout.source import warn_without_snapshots
from rl_bench.rollout.worker_service import Collected, deserialise, serialise
from rl_bench.workers.handle import WorkerLost
from rl_bench.workers.main import Factory
from rl_bench.workers.pool import WorkerPool

logger = logging.getLogger(__name__)


class WorkerGroup:
    """N workers that collect.

    One that is lost is replaced, `restart_budget` times in all, by what
    `make_factory(index, restarts)` makes; its environments start anew. `collecting` are those that
    have been asked and not answered, `broken` those whose environments raised.
    Raises: WorkerLost when the budget is spent.
    """

    def __init__(
        self,
        pool: WorkerPool,
        make_factory: Callable[[int, int], Factory],
        *,
        restart_budget: int,
    ) -> None:
        self.pool = pool
        self.restarts = 0
        self.collecting: set[int] = set()
        self.broken: dict[int, RlBenchError] = {}
        self._make_factory = make_factory
        self._budget = restart_budget
        self._unfinished = [0] * len(pool)
        self._seconds = dict.fromkeys(("simulation", "inference", "waiting"), 0.0)

    def __len__(self) -> int:
        return len(self.pool)

    def ask_to_collect(self, index: int, version: int, *, turn: int = 0) -> None:
        """Ask a worker, or whoever replaces it."""
        while True:
            try:
                self.pool.ask(index, "collect", version, turn)
            except WorkerLost as lost:
                self.replace(lost)
            else:
                self.collecting.add(index)
                return

    def next_collected(self) -> tuple[int, Collected]:
        """Wait for the next of those collecting, and return its number and reply.

        Raises: WorkerLost; what an environment raised.
        """
        return self._account(*self._answered(lambda: self.pool.next_reply(self.collecting)))

    def collected_by_now(self, index: int) -> Collected | None:
        """Return a worker's reply if it has come. Raises: as `next_collected`."""
        reply = self._answered(lambda: self.pool.reply_by_now([index]))
        return None if reply is None else self._account(*reply)[1]

    def collected_so_far(self) -> list[tuple[int, Collected]]:
        """Take every reply that has come, in the order of their ends.

        Who was lost or raised instead is dealt with when it is asked next.
        """
        replies = []
        for index in sorted(self.collecting):
            with contextlib.suppress(RlBenchError):
                collected = self.collected_by_now(index)
                replies += [(index, collected)] if collected else []
        return sorted(replies, key=lambda reply: reply[1].finished_at)

    def _answered(self, wait: Callable[[], Any]) -> Any:
        """Take a reply, and keep books on who raised or was lost instead."""
        try:
            reply = wait()
        except RlBenchError as error:
            if error.worker is not None:
                self.collecting.discard(error.worker)
                if not isinstance(error, WorkerLost):
                    self.broken[error.worker] = error
            raise
        if reply is not None:
            self.collecting.discard(reply[0])
        return reply

    def _account(self, index: int, collected: Collected) -> tuple[int, Collected]:
        self._unfinished[index] = collected.unfinished_episodes
        self._seconds["simulation"] += collected.simulation_seconds / len(self)
        self._seconds["inference"] += collected.inference_seconds / len(self)
        return index, collected

    def let_all_finish(self) -> list[tuple[int, Collected]]:
        """Wait until nobody collects; return the replies in the order of their ends.

        Those who fail are lost or `broken`.
        """
        replies = []
        while self.collecting:
            try:
                replies.append(self.next_collected())
            except RlBenchError as error:
                if error.worker is None:
                    raise  # nobody has answered: waiting on would be for ever
                logger.debug("while the others finished: %s", error)
        return sorted(replies, key=lambda reply: reply[1].finished_at)

    def replace(self, lost: WorkerLost) -> None:
        """Put another worker in the place of a lost one. Raises: WorkerLost when it cannot."""
        while True:
            if self._budget == 0:
                raise WorkerLost(lost.worker, f"{lost}; no restart is left") from lost
            self._budget -= 1
            self.restarts += 1
            try:
                self.pool.restart(lost.worker, self._make_factory(lost.worker, self.restarts))
            except WorkerLost as error:
                logger.warning("the replacement of worker %d: %s", lost.worker, error)
                lost = error
                continue
            except RlBenchError as error:
                message = f"{lost}; its replacement did not start: {error}"
                raise WorkerLost(lost.worker, message) from error
            logger.warning(
                "worker %d was restarted, its environments start anew; restarts left: %d",
                lost.worker,
                self._budget,
            )
            return

    def unfinished_episodes(self) -> int:
        return sum(self._unfinished)

    def timings(self) -> dict[str, float]:
        waited = sum(self.pool.waiting_seconds()) / len(self)
        return self._seconds | {"waiting": self._seconds["waiting"] + waited}

    def state_dict(self) -> dict[str, Any]:
        """Save everybody, once nobody collects. A worker that is lost or broken has no state.

        A resume starts its environments anew.
        """
        assert not self.collecting
        for index, error in self.broken.items():
            logger.warning("the environments of worker %d cannot be saved: %s", index, error)
        everyone = range(len(self))
        asked = [index not in self.broken and self._ask_for_state(index) for index in everyone]
        return {
            "workers": [
                self._state_of(i) if was_asked else None for i, was_asked in enumerate(asked)
            ],
            "restarts": self.restarts,
            "worker_seconds": self.timings(),
            "unfinished": list(self._unfinished),
        }

    def _ask_for_state(self, index: int) -> bool:
        try:
            self.pool.ask(index, "state")
        except WorkerLost:
            return False
        return True

    def _state_of(self, index: int) -> dict[str, Any] | None:
        try:
            _, state = self.pool.next_reply([index])
        except WorkerLost:
            return None
        return deserialise(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for index, saved in enumerate(state["workers"]):
            if saved is not None:
                self.pool.ask(index, "load_state", serialise(saved))
                self.pool.next_reply([index])
        warn_without_snapshots(state["workers"])
        self.restarts = state["restarts"]
        self._seconds = dict(state["worker_seconds"])
        self._unfinished = list(state["unfinished"])

    def close(self) -> None:
        self.pool.close()
