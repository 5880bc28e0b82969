"""The worker processes that collect: asked, replaced when they are lost, saved and restored.

What both ways of collecting with workers share (`parallel.py` in lock-step, `actors.py` ahead).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from rl_bench.errors import RlBenchError
from rl_bench.rollout.source import warn_without_snapshots
from rl_bench.rollout.worker_service import Collected, packed, unpacked
from rl_bench.workers.handle import WorkerLost
from rl_bench.workers.main import Factory
from rl_bench.workers.pool import WorkerPool

logger = logging.getLogger(__name__)


class Crew:
    """N workers that collect.

    One that is lost is replaced, `restart_budget` times in all, by what
    `make_factory(index, restarts)` makes; its environments start anew.
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
        self._make_factory = make_factory
        self._budget = restart_budget
        self._unfinished = [0] * len(pool)
        self._seconds = dict.fromkeys(("simulation", "inference", "waiting"), 0.0)

    def __len__(self) -> int:
        return len(self.pool)

    def ask_to_collect(
        self, index: int, version: int, *, block: int = 0, collecting: Iterable[int] = ()
    ) -> None:
        """Ask a worker, or whoever replaces it; `collecting` as in `replace`."""
        while True:
            try:
                return self.pool.ask(index, "collect", version, block)
            except WorkerLost as lost:
                self.replace(lost, collecting)

    def next_collected(self, among: Collection[int]) -> tuple[int, Collected]:
        """Who finishes next, and what it says. Raises: WorkerLost."""
        return self._account(*self.pool.next_reply(among))

    def collected_by_now(self, among: Collection[int]) -> tuple[int, Collected] | None:
        """The same without waiting; None where nobody has finished. Raises: WorkerLost."""
        reply = self.pool.reply_by_now(among)
        return None if reply is None else self._account(*reply)

    def _account(self, index: int, collected: Collected) -> tuple[int, Collected]:
        self._unfinished[index] = collected.unfinished_episodes
        self._seconds["simulation"] += collected.simulation_seconds / len(self)
        self._seconds["inference"] += collected.inference_seconds / len(self)
        return index, collected

    def replace(self, lost: WorkerLost, collecting: Iterable[int] = ()) -> None:
        """Put another worker in its place; if there cannot be one, let those `collecting` finish.

        Raises: WorkerLost when there cannot be one.
        """
        while True:
            if self._budget == 0:
                self._let_finish(collecting)
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
                self._let_finish(collecting)
                message = f"{lost}; its replacement did not start: {error}"
                raise WorkerLost(lost.worker, message) from error
            logger.warning(
                "worker %d was restarted, its environments start anew; restarts left: %d",
                lost.worker,
                self._budget,
            )
            return

    def _let_finish(self, collecting: Iterable[int]) -> None:
        """The run ends, but the others' environments are to be saved: they must answer first."""
        for index in collecting:
            with contextlib.suppress(RlBenchError):
                self.pool.next_reply([index])

    def unfinished_episodes(self) -> int:
        return sum(self._unfinished)

    def timings(self) -> dict[str, float]:
        waited = sum(self.pool.waiting_seconds()) / len(self)
        return self._seconds | {"waiting": self._seconds["waiting"] + waited}

    def state_dict(self, *, without: Collection[int] = ()) -> dict[str, Any]:
        """Nobody may be collecting. A worker that is lost, or `without`, has no state.

        A resume starts its environments anew.
        """
        everyone = range(len(self))
        asked = [index not in without and self._ask_for_state(index) for index in everyone]
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
        return unpacked(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for index, saved in enumerate(state["workers"]):
            if saved is not None:
                self.pool.ask(index, "load_state", packed(saved))
                self.pool.next_reply([index])
        warn_without_snapshots(state["workers"])
        self.restarts = state["restarts"]
        self._seconds = dict(state["worker_seconds"])
        self._unfinished = list(state["unfinished"])

    def close(self) -> None:
        self.pool.close()
