"""Decides when a run stops, and keeps its time. In training, timed runs differ only here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rl_bench.types import Counters

SECONDS_PER_HOUR = 3600.0
PHASES = ("collect", "update", "publish", "record", "checkpoint")


class Stopwatch:
    """Measures the window of a run: it opens at `start` and is divided into named phases.

    `clock` is monotonic, in seconds; it is injected so that tests need not sleep. Every lap is
    charged to one phase, so the phases add up to the elapsed time by construction.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opened = self._last_lap = clock()
        self._earlier = 0.0
        self._stopped = False
        self.phases = dict.fromkeys(PHASES, 0.0)

    def start(self) -> None:
        self._opened = self._last_lap = self._clock()

    def stop(self) -> None:
        """Close the window: what happens from now on is not measured."""
        self.lap("record")
        self._stopped = True

    def lap(self, phase: str) -> None:
        """Charge the time since the last lap to `phase`."""
        now = self._clock()
        self.phases[phase] += now - self._last_lap
        self._last_lap = now

    def elapsed(self) -> float:
        """Return the seconds in the window until now, with earlier sessions of a resumed run."""
        if self._stopped:
            return self.elapsed_at_last_lap()
        return self._earlier + self._clock() - self._opened

    def elapsed_at_last_lap(self) -> float:
        """Return the seconds until the last lap: what the phases add up to."""
        return self._earlier + self._last_lap - self._opened

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed_at_last_lap(), "phases": dict(self.phases)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._earlier = state["elapsed"]
        self.phases = dict(state["phases"])


class Limit(Protocol):
    """Limits a run to a budget, named by `kind`; `limit` and `reached` are in `unit`."""

    kind: str
    unit: str
    limit: float

    def reached(self) -> float:
        """Return how much of the budget is spent."""


class TimestepLimit:
    """Limits the environment steps over all environments."""

    kind, unit = "timesteps", "timesteps"

    def __init__(self, counters: Counters, total: int) -> None:
        self.counters, self.limit = counters, float(total)

    def reached(self) -> float:
        return float(self.counters.timesteps)


class WallClockLimit:
    """Limits the seconds of the measured window."""

    kind, unit = "wall_clock", "seconds"

    def __init__(self, stopwatch: Stopwatch, hours: float) -> None:
        self.stopwatch, self.limit = stopwatch, hours * SECONDS_PER_HOUR

    def reached(self) -> float:
        return self.stopwatch.elapsed()


class Stop:
    """Stops when the limit is reached or the user asked for it, between two updates."""

    def __init__(self, limit: Limit, interrupted: Callable[[], bool]) -> None:
        self.limit, self.interrupted = limit, interrupted

    def done(self) -> bool:
        return self.interrupted() or self.completed()

    def completed(self) -> bool:
        return self.limit.reached() >= self.limit.limit

    def progress(self) -> float:
        """Return the share of the budget that is spent, in [0, 1]; it drives the schedules."""
        return min(1.0, self.limit.reached() / self.limit.limit)
